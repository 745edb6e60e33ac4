//! Messages from a server to a client: views of those a pooler must look into, builders of those
//! it writes itself.

mod read;
mod result;
mod write;

pub use read::{
    Authentication, BackendKeyData, Fields, Mechanisms, NegotiateProtocolVersion, ParameterStatus,
    TransactionStatus, command_tag_of,
};
pub use result::{ColumnDescription, DataRow, RowDescription};
pub use write::{
    Column, Report, Severity, authentication_cleartext, authentication_md5, authentication_ok,
    authentication_sasl, authentication_sasl_continue, authentication_sasl_final, backend_key_data,
    bind_complete, close_complete, command_complete, data_row, empty_query_response,
    error_response, negotiate_protocol_version, no_data, notice_response, oid,
    parameter_description, parameter_status, parse_complete, portal_suspended, ready_for_query,
    row_description,
};
