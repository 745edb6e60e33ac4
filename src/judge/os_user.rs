//! Names of the operating system's users.

use nix::unistd::{Uid, User};

/// The name of user `uid`; `None` if there is none, or the system cannot say. Blocks while name
/// services are asked.
pub fn os_user_name(uid: u32) -> Option<String> {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(user) => user.map(|user| user.name),
        Err(error) => {
            tracing::warn!(uid, %error, "cannot look up a user of the system");
            None
        }
    }
}
