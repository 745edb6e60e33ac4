//! The type bytes of messages. Two modules, because the same letter means one thing from a
//! client and another from a server.
//!
//! Source: PostgreSQL documentation, 54.7 "Message Formats", protocol 3.0 to 3.2. The first
//! packet of a connection has no type byte.

macro_rules! tags {
    ($($(#[$doc:meta])+ $name:ident = $byte:literal;)+) => {
        $($(#[$doc])+ pub const $name: u8 = $byte;)+

        /// Whether a message of this type exists in this direction.
        pub const fn is_known(tag: u8) -> bool {
            matches!(tag, $($name)|+)
        }
    };
}

/// Messages from a client to a server.
pub mod frontend {
    tags! {
        /// Bind: makes a portal from a prepared statement and parameter values.
        BIND = b'B';
        /// Close: forgets a prepared statement or a portal.
        CLOSE = b'C';
        /// CopyData: a piece of COPY data.
        COPY_DATA = b'd';
        /// CopyDone: the COPY data is complete.
        COPY_DONE = b'c';
        /// CopyFail: the client gives up its COPY.
        COPY_FAIL = b'f';
        /// Describe: asks for the shape of a prepared statement or a portal.
        DESCRIBE = b'D';
        /// Execute: runs a portal.
        EXECUTE = b'E';
        /// Flush: asks for the replies so far.
        FLUSH = b'H';
        /// FunctionCall: calls a function by its object id (obsolete).
        FUNCTION_CALL = b'F';
        /// Parse: prepares a statement.
        PARSE = b'P';
        /// PasswordMessage, SASLInitialResponse, SASLResponse, GSSResponse: which one it is
        /// follows from the Authentication request before it.
        PASSWORD = b'p';
        /// Query: a simple query.
        QUERY = b'Q';
        /// Sync: ends an extended-query pipeline.
        SYNC = b'S';
        /// Terminate: the client leaves.
        TERMINATE = b'X';
    }
}

/// Messages from a server to a client.
pub mod backend {
    tags! {
        /// Authentication: a request for proof, or its acceptance.
        AUTHENTICATION = b'R';
        /// BackendKeyData: the key for cancel requests.
        BACKEND_KEY_DATA = b'K';
        /// BindComplete: answers Bind.
        BIND_COMPLETE = b'2';
        /// CloseComplete: answers Close.
        CLOSE_COMPLETE = b'3';
        /// CommandComplete: one command ended well.
        COMMAND_COMPLETE = b'C';
        /// CopyBothResponse: both sides copy (replication only).
        COPY_BOTH_RESPONSE = b'W';
        /// CopyData: a piece of COPY data.
        COPY_DATA = b'd';
        /// CopyDone: the COPY data is complete.
        COPY_DONE = b'c';
        /// CopyInResponse: the client may send its COPY data.
        COPY_IN_RESPONSE = b'G';
        /// CopyOutResponse: COPY data follows.
        COPY_OUT_RESPONSE = b'H';
        /// DataRow: one row of a result.
        DATA_ROW = b'D';
        /// EmptyQueryResponse: the query text was empty; stands for CommandComplete.
        EMPTY_QUERY_RESPONSE = b'I';
        /// ErrorResponse: a command failed.
        ERROR_RESPONSE = b'E';
        /// FunctionCallResponse: the result of a FunctionCall.
        FUNCTION_CALL_RESPONSE = b'V';
        /// NegotiateProtocolVersion: the server speaks less than what was asked for.
        NEGOTIATE_PROTOCOL_VERSION = b'v';
        /// NoData: what was described returns no rows.
        NO_DATA = b'n';
        /// NoticeResponse: a warning or notice; may come at any time.
        NOTICE_RESPONSE = b'N';
        /// NotificationResponse: a NOTIFY; may come at any time outside of a transaction.
        NOTIFICATION_RESPONSE = b'A';
        /// ParameterDescription: the parameter types of a prepared statement.
        PARAMETER_DESCRIPTION = b't';
        /// ParameterStatus: the value of a reported setting; may come at any time.
        PARAMETER_STATUS = b'S';
        /// ParseComplete: answers Parse.
        PARSE_COMPLETE = b'1';
        /// PortalSuspended: Execute reached its row limit.
        PORTAL_SUSPENDED = b's';
        /// ReadyForQuery: a query cycle ended; carries the transaction status.
        READY_FOR_QUERY = b'Z';
        /// RowDescription: the columns of the rows that follow.
        ROW_DESCRIPTION = b'T';
    }
}

#[cfg(test)]
mod tests {
    use super::{backend, frontend};

    fn known(is_known: fn(u8) -> bool) -> String {
        let tags = (0..=u8::MAX).filter(|tag| is_known(*tag));
        tags.map(char::from).collect()
    }

    #[test]
    fn frontend_knows_exactly_the_messages_of_protocol_3() {
        assert_eq!(known(frontend::is_known), "BCDEFHPQSXcdfp");
    }

    #[test]
    fn backend_knows_exactly_the_messages_of_protocol_3() {
        assert_eq!(known(backend::is_known), "123ACDEGHIKNRSTVWZcdnstv");
    }
}
