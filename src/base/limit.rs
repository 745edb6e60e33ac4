//! Every hard bound of the process, with its unit in its name.

/// Most shards of one process: the shard number takes 10 bits of a cancel key.
pub const SHARDS_MAX: usize = 1024;

/// Largest start-up packet accepted, length word included (PostgreSQL: MAX_STARTUP_PACKET_LENGTH
/// is 10,000; PgBouncer reads 16 bits of length, 65,535).
pub const STARTUP_PACKET_BYTES_MAX: usize = 65_535;

/// Largest password or SASL message accepted before a client is authenticated, header excluded
/// (PostgreSQL: PG_MAX_AUTH_TOKEN_LENGTH).
pub const AUTH_MESSAGE_BYTES_MAX: usize = 65_535;

/// Shortest cancel key: process id and the 4-byte secret of protocol 3.0.
pub const CANCEL_KEY_BYTES_MIN: usize = 4 + 4;

/// Longest cancel key: process id and the longest secret that protocol 3.2 allows.
pub const CANCEL_KEY_BYTES_MAX: usize = 4 + 256;

/// Longest database name (PgBouncer: MAX_DBNAME), in bytes.
pub const DATABASE_NAME_BYTES_MAX: usize = 63;

/// Longest user name (PgBouncer: MAX_USERNAME), in bytes.
pub const USER_NAME_BYTES_MAX: usize = 127;

/// PBKDF2 iterations of SCRAM verifiers that are made here (PostgreSQL: scram_iterations).
pub const SCRAM_ITERATIONS: u32 = 4096;

/// Clients beyond `max_client_conn` that may be on their way in: they are told that there are too
/// many, unless they are the console's. More are closed unheard, so that whoever just opens
/// connections cannot use up the descriptors.
pub const LOBBY_CLIENTS_MAX: usize = 256;

/// The same when memory is nearly used up (`memory_max`): each may take 128 KiB, and what TLS takes, before it has said who it is.
pub const FULL_LOBBY_CLIENTS_MAX: usize = 32;

/// Servers that are being opened at a time on one machine, of all pools together: as many as four pools open at a time,
/// so that a restart of PostgreSQL does not meet every pool at once.
pub const OPENINGS_THERE_MAX: u32 = 32;

/// Clients on the Unix socket beyond those, of the user who runs the process: so that an operator always gets in.
pub const CONSOLE_RESERVE: usize = 16;
