//! Messages from a client to a server: views of the few that a pooler must look into, builders of
//! those it sends to servers itself.

mod read;
mod write;

pub use read::{
    Bind, Execute, Parse, SaslInitialResponse, Target, TargetKind, password_of, query_of,
};
pub use write::{
    bind, bind_renamed_head, close_statement, describe_statement, execute, flush, parse,
    parse_renamed, password, query, sasl_initial_response, sasl_response, sync, terminate,
};
