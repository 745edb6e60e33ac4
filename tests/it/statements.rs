//! Named prepared statements where a name's past matters: what an error undid, what came ahead in the same pipeline.

use crate::support::wire::*;
use crate::support::*;

#[track_caller]
fn prepare(client: &mut Client, name: &str, sql: &str) {
    let reply = client.exchange(&[parse(name, sql), sync()].concat());
    assert_eq!(reply.tags, "1Z", "{reply:?}");
}

everywhere!(name_whose_close_was_skipped_goes_with_all_others, |stage| {
    let mut client = stage.client();
    for forget in ["discard all", "deallocate all"] {
        // The Bind fails, as it has a value too many.
        let batch = [
            parse("s", "select 1"),
            bind("", "s", &["1"]),
            close(b'S', "s"),
            sync(),
        ];
        let reply = client.exchange(&batch.concat());
        assert_eq!((reply.tags.as_str(), reply.code()), ("1EZ", "08P01"));
        client.value(forget);
        prepare(&mut client, "s", "select 2");
        let reply = client.exchange(&[run_prepared("s", &[]), sync()].concat());
        assert_eq!(reply.value(), "2", "{forget}");
        client.value(forget);
    }
});
