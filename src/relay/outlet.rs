//! What goes on from a received piece of stream: without a copy as long as everything does.

use crate::net::Net;
use std::ops::Range;

/// What is to be sent instead of the bytes received.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Passed {
    /// That many of their first bytes, unchanged.
    Prefix(usize),
    /// These bytes.
    Copy(Vec<u8>),
}

/// Collects what passes.
pub(super) struct Outlet<'a> {
    data: &'a [u8],
    /// As long as there is no copy: everything before this passes unchanged.
    kept: usize,
    copy: Option<Vec<u8>>,
    /// Where an empty buffer to copy into comes from, should there be a copy.
    spares: Option<Net>,
}

impl<'a> Outlet<'a> {
    pub(super) fn new(data: &'a [u8], spares: Option<Net>) -> Outlet<'a> {
        Outlet {
            data,
            kept: 0,
            copy: None,
            spares,
        }
    }

    /// Lets a range pass; ranges come in ascending order, and what is left out does not pass.
    #[inline]
    pub(super) fn keep(&mut self, range: Range<usize>) {
        match &mut self.copy {
            None if range.start == self.kept => self.kept = range.end,
            None => {
                let data = self.data;
                self.insert().extend_from_slice(&data[range]);
            }
            Some(copy) => copy.extend_from_slice(&self.data[range]),
        }
    }

    /// Where to append bytes of the pooler's own.
    pub(super) fn insert(&mut self) -> &mut Vec<u8> {
        self.copy.get_or_insert_with(|| {
            let mut copy = self.spares.map(Net::spare).unwrap_or_default();
            copy.extend_from_slice(&self.data[..self.kept]);
            copy
        })
    }

    /// Moves bytes of the pooler's own out of `bytes`.
    pub(super) fn append(&mut self, bytes: &mut Vec<u8>) {
        if !bytes.is_empty() {
            self.insert().append(bytes);
        }
    }

    pub(super) fn finish(self) -> Passed {
        match self.copy {
            Some(copy) => Passed::Copy(copy),
            None => Passed::Prefix(self.kept),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlet() -> Outlet<'static> {
        Outlet::new(b"abcdef", None)
    }

    #[test]
    fn what_passes_from_the_start_is_not_copied() {
        let mut outlet = outlet();
        outlet.keep(0..2);
        outlet.keep(2..5);
        assert_eq!(outlet.finish(), Passed::Prefix(5));
    }

    #[test]
    fn a_gap_makes_a_copy() {
        let mut outlet = outlet();
        outlet.keep(0..1);
        outlet.keep(3..4);
        outlet.keep(5..6);
        assert_eq!(outlet.finish(), Passed::Copy(b"adf".to_vec()));
    }

    #[test]
    fn own_bytes_stand_between_what_passes() {
        let mut outlet = outlet();
        outlet.keep(0..2);
        outlet.insert().extend_from_slice(b"--");
        outlet.keep(2..6);
        assert_eq!(outlet.finish(), Passed::Copy(b"ab--cdef".to_vec()));
    }

    #[test]
    fn nothing_kept_is_nothing() {
        assert_eq!(outlet().finish(), Passed::Prefix(0));
    }
}
