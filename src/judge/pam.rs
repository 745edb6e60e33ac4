//! Asks the system's PAM modules whether a password is right.
//!
//! `libpam.so.0` is loaded when it is first needed: neither the build nor a machine without PAM
//! needs it.
#![allow(unsafe_code)]

use crate::base::Secret;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::OnceLock;

// Constants of Linux-PAM's <security/_pam_types.h>.
const PAM_SUCCESS: c_int = 0;
const PAM_BUF_ERR: c_int = 5;
const PAM_CONV_ERR: c_int = 19;
const PAM_RHOST: c_int = 4;
const PAM_PROMPT_ECHO_OFF: c_int = 1;
const PAM_ERROR_MSG: c_int = 3;
const PAM_TEXT_INFO: c_int = 4;
const PAM_DISALLOW_NULL_AUTHTOK: c_int = 1;
const PAM_SILENT: c_int = 0x8000;
/// PAM_MAX_NUM_MSG.
const MESSAGES_MAX: c_int = 32;

#[repr(C)]
struct Message {
    style: c_int,
    text: *const c_char,
}

#[repr(C)]
struct Response {
    text: *mut c_char,
    unused: c_int,
}

#[repr(C)]
struct Conversation {
    talk: extern "C" fn(c_int, *mut *const Message, *mut *mut Response, *mut c_void) -> c_int,
    password: *mut c_void,
}

type Start = unsafe extern "C" fn(
    *const c_char,
    *const c_char,
    *const Conversation,
    *mut *mut c_void,
) -> c_int;
type SetItem = unsafe extern "C" fn(*mut c_void, c_int, *const c_void) -> c_int;
type Step = unsafe extern "C" fn(*mut c_void, c_int) -> c_int;
type StrError = unsafe extern "C" fn(*mut c_void, c_int) -> *const c_char;

/// The functions of the library.
struct Library {
    start: Start,
    set_item: SetItem,
    authenticate: Step,
    account: Step,
    end: Step,
    strerror: StrError,
}

/// Whether PAM's modules for `service` accept the password and the account. Blocks for as long as
/// they take; trouble is logged, and nobody is let in.
pub fn pam_allows(service: &str, user: &str, password: &Secret, remote: &str) -> bool {
    let Some(library) = Library::get() else {
        tracing::error!("libpam.so.0 cannot be loaded: nobody can log in by PAM");
        return false;
    };
    let text = |text: &[u8]| CString::new(text).ok();
    let (Some(service), Some(user), Some(password), Some(remote)) = (
        text(service.as_bytes()),
        text(user.as_bytes()),
        text(password.expose()),
        text(remote.as_bytes()),
    ) else {
        return false;
    };
    let verdict = library.ask(&service, &user, &password, &remote);
    zeroize::Zeroize::zeroize(&mut password.into_bytes());
    match verdict {
        Ok(()) => true,
        Err((step, reason)) => {
            tracing::info!(user = ?user, step, reason, "PAM refused a login");
            false
        }
    }
}

impl Library {
    fn get() -> Option<&'static Library> {
        static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
        LIBRARY.get_or_init(Library::load).as_ref()
    }

    fn load() -> Option<Library> {
        // SAFETY: the name ends in a zero byte; the handle is never closed, so that what is found in
        // it stays valid.
        let handle =
            unsafe { libc::dlopen(c"libpam.so.0".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if handle.is_null() {
            return None;
        }
        let find = |name: &CStr| {
            // SAFETY: `handle` came from dlopen and was not closed; the name ends in a zero byte.
            let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
            (!found.is_null()).then_some(found)
        };
        // SAFETY: each symbol has the signature that <security/pam_appl.h> gives it.
        unsafe {
            Some(Library {
                start: std::mem::transmute::<*mut c_void, Start>(find(c"pam_start")?),
                set_item: std::mem::transmute::<*mut c_void, SetItem>(find(c"pam_set_item")?),
                authenticate: std::mem::transmute::<*mut c_void, Step>(find(c"pam_authenticate")?),
                account: std::mem::transmute::<*mut c_void, Step>(find(c"pam_acct_mgmt")?),
                end: std::mem::transmute::<*mut c_void, Step>(find(c"pam_end")?),
                strerror: std::mem::transmute::<*mut c_void, StrError>(find(c"pam_strerror")?),
            })
        }
    }

    fn ask(
        &self,
        service: &CStr,
        user: &CStr,
        password: &CStr,
        remote: &CStr,
    ) -> Result<(), (&'static str, String)> {
        let conversation = Conversation {
            talk,
            password: password.as_ptr().cast_mut().cast(),
        };
        let mut handle = ptr::null_mut();
        // SAFETY: all pointers live until pam_end below, which is the last use of the handle.
        let started =
            unsafe { (self.start)(service.as_ptr(), user.as_ptr(), &conversation, &mut handle) };
        if started != PAM_SUCCESS {
            return Err(("start", format!("code {started}")));
        }
        let flags = PAM_SILENT | PAM_DISALLOW_NULL_AUTHTOK;
        // SAFETY: the handle came from pam_start and has not been ended; PAM copies the item; its
        // texts are constant.
        let (step, status, reason) = unsafe {
            let mut step = "remote host";
            let mut status = (self.set_item)(handle, PAM_RHOST, remote.as_ptr().cast());
            if status == PAM_SUCCESS {
                step = "password";
                status = (self.authenticate)(handle, flags);
            }
            if status == PAM_SUCCESS {
                step = "account";
                status = (self.account)(handle, flags);
            }
            (step, status, owned((self.strerror)(handle, status)))
        };
        // SAFETY: as above; nothing uses the handle afterwards.
        unsafe { (self.end)(handle, status) };
        if status == PAM_SUCCESS {
            Ok(())
        } else {
            Err((step, reason))
        }
    }
}

fn owned(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: PAM's texts end in a zero byte and live as long as the library.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

/// Answers every question that hides its answer with the password; other questions end it.
extern "C" fn talk(
    count: c_int,
    messages: *mut *const Message,
    responses: *mut *mut Response,
    password: *mut c_void,
) -> c_int {
    let Some(number) = usize::try_from(count)
        .ok()
        .filter(|_| count <= MESSAGES_MAX)
    else {
        return PAM_CONV_ERR;
    };
    // SAFETY: calloc gives zeroed memory for all responses or null; PAM frees it (pam_conv(3)).
    let answers: *mut Response =
        unsafe { libc::calloc(number.max(1), size_of::<Response>()) }.cast();
    if answers.is_null() {
        return PAM_BUF_ERR;
    }
    for at in 0..number {
        // SAFETY: Linux-PAM passes an array of `count` valid pointers to messages.
        let style = unsafe { (**messages.add(at)).style };
        match style {
            PAM_PROMPT_ECHO_OFF => {
                // SAFETY: `password` is the C string that pam_start was given, `at` is below the count
                // that was allocated; PAM frees the copy.
                unsafe { (*answers.add(at)).text = libc::strdup(password.cast()) };
            }
            PAM_ERROR_MSG | PAM_TEXT_INFO => {}
            _ => {
                free(answers, at);
                return PAM_CONV_ERR;
            }
        }
    }
    // SAFETY: PAM passes a place for the responses.
    unsafe { *responses = answers };
    PAM_SUCCESS
}

/// Frees responses that PAM will not see.
fn free(answers: *mut Response, count: usize) {
    for at in 0..count {
        // SAFETY: the first `count` entries are initialised; their texts are null or from strdup.
        unsafe { libc::free((*answers.add(at)).text.cast()) };
    }
    // SAFETY: it came from calloc and nobody else has it.
    unsafe { libc::free(answers.cast()) };
}
