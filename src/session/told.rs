//! What a client was told of the types of a statement's result, and what it is about to be told.

use super::on_server::{Occurrence, RowTypes};
use std::cell::Cell;
use std::rc::Rc;

/// Of one of a client's names.
#[derive(Debug, Default)]
pub struct Telling {
    types: Cell<Option<RowTypes>>,
    due: Cell<Option<Occurrence>>,
}

/// Shared with the Describes that are to tell more.
pub type Told = Rc<Telling>;

impl Telling {
    /// It was told these.
    pub(super) fn of(types: RowTypes) -> Telling {
        Telling {
            types: Cell::new(Some(types)),
            due: Cell::default(),
        }
    }

    /// The types that it was told last.
    #[inline]
    pub fn types(&self) -> Option<RowTypes> {
        self.types.get()
    }

    /// Of what it is about to be told the types, if it is.
    #[inline]
    pub fn due(&self) -> Option<Occurrence> {
        self.due.get()
    }

    /// Whether it was told anything, or will be.
    #[inline]
    pub fn is_any(&self) -> bool {
        self.types().is_some() || self.due().is_some()
    }

    /// A Describe is about to be sent.
    pub fn begins(&self, of: Occurrence) {
        self.due.set(Some(of));
    }

    /// It has been answered with these; with nothing, if there is no result: whoever was told so misreads nothing.
    pub(super) fn answered(&self, of: Occurrence, types: Option<RowTypes>) {
        self.types.set(types);
        self.failed(of);
    }

    /// It has been answered with an error.
    pub(super) fn failed(&self, of: Occurrence) {
        if self.due.get() == Some(of) {
            self.due.set(None);
        }
    }
}
