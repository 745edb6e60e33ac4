//! A queue whose first element needs no memory of its own: what a connection has under way is one buffer almost always, and
//! there are many connections that have nothing under way.

use std::collections::VecDeque;

/// First in, first out. Memory for more than one element is given back when they are gone.
pub(super) struct Queue<T> {
    first: Option<T>,
    /// None if there is no first. In a box, as every connection has room for it.
    #[allow(clippy::box_collection)]
    rest: Option<Box<VecDeque<T>>>,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue {
            first: None,
            rest: None,
        }
    }
}

impl<T> Queue<T> {
    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.as_ref().map_or(0, |rest| rest.len())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn push_back(&mut self, element: T) {
        match self.first {
            None => self.first = Some(element),
            Some(_) => self.rest.get_or_insert_default().push_back(element),
        }
    }

    pub(super) fn push_front(&mut self, element: T) {
        if let Some(second) = self.first.replace(element) {
            self.rest.get_or_insert_default().push_front(second);
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<T> {
        let element = self.first.take()?;
        if let Some(rest) = &mut self.rest {
            self.first = rest.pop_front();
            if rest.is_empty() {
                self.rest = None;
            }
        }
        Some(element)
    }

    pub(super) fn front(&self) -> Option<&T> {
        self.first.as_ref()
    }

    pub(super) fn front_mut(&mut self) -> Option<&mut T> {
        self.first.as_mut()
    }

    /// Takes everything out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> + use<T> {
        let Queue { first, rest } = std::mem::take(self);
        first
            .into_iter()
            .chain(rest.into_iter().flat_map(|rest| *rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_come_out_in_the_order_they_went_in() {
        let mut queue = Queue::default();
        let (mut next_in, mut next_out) = (0, 0);
        for burst in [1, 3, 0, 7, 2, 1, 1] {
            for _ in 0..burst {
                queue.push_back(next_in);
                next_in += 1;
            }
            for _ in 0..burst / 2 + 1 {
                if let Some(element) = queue.pop_front() {
                    assert_eq!(element, next_out);
                    next_out += 1;
                }
            }
            assert_eq!(queue.len(), next_in - next_out);
            assert_eq!(
                queue.front().copied(),
                (next_out < next_in).then_some(next_out)
            );
            assert_eq!(queue.is_empty(), next_in == next_out);
        }
        assert_eq!(
            queue.drain().collect::<Vec<_>>(),
            (next_out..next_in).collect::<Vec<_>>()
        );
        assert!(queue.is_empty());
    }

    #[test]
    fn a_burst_leaves_no_memory_behind() {
        let mut queue = Queue::default();
        (0..5).for_each(|element| queue.push_back(element));
        (0..5).for_each(|_| assert!(queue.pop_front().is_some()));
        assert!(queue.rest.is_none());
    }
}
