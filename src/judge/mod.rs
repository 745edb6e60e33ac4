//! Who is asked about a client besides the pooler itself: LDAP servers, PAM, the system's table of
//! users. Everything here may block, and runs on worker threads that no shard ever waits for.

mod ldap;
mod os_user;
mod pam;
mod workers;

pub use ldap::ldap_allows;
pub use os_user::os_user_name;
pub use pam::pam_allows;
pub use workers::Workers;
