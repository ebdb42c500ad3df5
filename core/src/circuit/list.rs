//! Doubly linked lists through slots of a table: a slot enters and leaves in constant time, and no list can be full.

/// Where a slot stands in one kind of list.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hook {
    prev: Option<Link>,
    next: Option<Link>,
    listed: bool,
}

impl Hook {
    /// A slot that stands in no list.
    pub const NONE: Self = Self { prev: None, next: None, listed: false };

    /// Whether the slot stands in a list.
    #[must_use]
    pub const fn is_listed(&self) -> bool {
        self.listed
    }
}

/// An index that fits its `Option` in four bytes.
type Link = core::num::NonZeroU32;

fn link(index: usize) -> Option<Link> {
    // Tables have far fewer than 2^32 slots; one past the end would only make the list shorter.
    u32::try_from(index + 1).ok().and_then(Link::new)
}

fn index(link: Link) -> usize {
    link.get() as usize - 1
}

/// A slot that can stand in one list for each kind `K`.
pub trait Hooked<K: Copy> {
    /// The slot's hook for lists of `kind`.
    fn hook(&mut self, kind: K) -> &mut Hook;
}

/// First in, first out; the slots lie in a table that every call is given.
#[derive(Debug, Clone, Copy, Default)]
pub struct List {
    head: Option<Link>,
    tail: Option<Link>,
}

impl List {
    /// Whether nothing is listed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.head.is_none()
    }

    /// The first slot's index.
    #[must_use]
    pub fn front(&self) -> Option<usize> {
        self.head.map(index)
    }

    /// Puts slot `at` last, unless it is listed already.
    pub fn push<S: Hooked<K>, K: Copy>(&mut self, slots: &mut [S], at: usize, kind: K) {
        let hook = slots[at].hook(kind);
        if hook.listed {
            return;
        }
        *hook = Hook { prev: self.tail, next: None, listed: true };
        match self.tail {
            Some(tail) => slots[index(tail)].hook(kind).next = link(at),
            None => self.head = link(at),
        }
        self.tail = link(at);
    }

    /// Takes slot `at` out, if it is listed. It must be in this list or in none.
    pub fn remove<S: Hooked<K>, K: Copy>(&mut self, slots: &mut [S], at: usize, kind: K) {
        let hook = slots[at].hook(kind);
        if !hook.listed {
            return;
        }
        let Hook { prev, next, .. } = core::mem::take(hook);
        match prev {
            Some(prev) => slots[index(prev)].hook(kind).next = next,
            None => self.head = next,
        }
        match next {
            Some(next) => slots[index(next)].hook(kind).prev = prev,
            None => self.tail = prev,
        }
    }

    /// Takes the first slot out and returns its index.
    pub fn pop<S: Hooked<K>, K: Copy>(&mut self, slots: &mut [S], kind: K) -> Option<usize> {
        let at = self.front()?;
        self.remove(slots, at, kind);
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{collections::VecDeque, vec::Vec};

    #[derive(Default, Clone, Copy)]
    struct Slot([Hook; 2]);

    impl Hooked<usize> for Slot {
        fn hook(&mut self, kind: usize) -> &mut Hook {
            &mut self.0[kind]
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(usize),
        Remove(usize),
        Pop,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![(0..6usize).prop_map(Step::Push), (0..6usize).prop_map(Step::Remove), Just(Step::Pop)];
        proptest::collection::vec(step, 0..80)
    }

    proptest! {
        #[test]
        fn behaves_as_a_queue_without_repetitions(steps in steps()) {
            let mut slots = [Slot::default(); 6];
            let mut list = List::default();
            let mut other = List::default();
            let mut model = VecDeque::new();
            for at in 0..6 {
                other.push(&mut slots, at, 1usize);
            }
            for step in steps {
                match step {
                    Step::Push(at) => {
                        list.push(&mut slots, at, 0usize);
                        if !model.contains(&at) {
                            model.push_back(at);
                        }
                    }
                    Step::Remove(at) => {
                        list.remove(&mut slots, at, 0usize);
                        model.retain(|&listed| listed != at);
                    }
                    Step::Pop => prop_assert_eq!(list.pop(&mut slots, 0usize), model.pop_front()),
                }
                prop_assert_eq!(list.front(), model.front().copied());
                prop_assert_eq!(list.is_empty(), model.is_empty());
            }
            let rest: Vec<_> = core::iter::from_fn(|| list.pop(&mut slots, 0usize)).collect();
            prop_assert_eq!(rest, Vec::from(model));
            let untouched: Vec<_> = core::iter::from_fn(|| other.pop(&mut slots, 1usize)).collect();
            prop_assert_eq!(untouched, Vec::from_iter(0..6));
        }
    }
}
