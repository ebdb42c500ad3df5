//! An allocator that counts: what the heap of a board would have to hold.

#![allow(unsafe_code, reason = "GlobalAlloc")]

use core::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
};
use std::{alloc::System, thread_local};

/// The system's allocator, with counts for each thread of what that thread allocates and frees.
///
/// ```
/// use bulbil_firmware_sim::linux::heap::CountingHeap;
///
/// #[global_allocator]
/// static HEAP: CountingHeap = CountingHeap;
/// ```
pub struct CountingHeap;

/// What one thread has taken from the heap. All zero unless [`CountingHeap`] is the program's allocator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapUsage {
    /// Allocations so far; a block that was resized counts once more.
    pub allocations: u64,
    /// Bytes in use: allocated by the thread, less what it freed. Zero where it freed more than it had allocated (blocks of other threads).
    pub in_use: usize,
    /// The most bytes in use at a time since [`reset_peak`]. While a block is resized, old and new count both: a board's
    /// allocator copies.
    pub peak: usize,
}

#[derive(Clone, Copy)]
struct Counts {
    allocations: u64,
    /// Below zero after blocks of other threads were freed here.
    in_use: isize,
    peak: isize,
}

thread_local! {
    // Initialised by the compiler and without a destructor: to reach it, nothing is allocated.
    static COUNTS: Cell<Counts> = const { Cell::new(Counts { allocations: 0, in_use: 0, peak: 0 }) };
}

/// What the calling thread has taken from the heap.
#[must_use]
pub fn usage() -> HeapUsage {
    let Counts { allocations, in_use, peak } = COUNTS.get();
    let bytes = |count: isize| usize::try_from(count).unwrap_or(0);
    HeapUsage { allocations, in_use: bytes(in_use), peak: bytes(peak) }
}

/// Begins the calling thread's peak anew, at what is in use now.
pub fn reset_peak() {
    COUNTS.set(Counts { peak: COUNTS.get().in_use, ..COUNTS.get() });
}

/// A block of `len` bytes came, and one of `gone` bytes goes once this one is there.
fn count(len: usize, gone: usize) {
    let Counts { allocations, in_use, peak } = COUNTS.get();
    // No block is longer than `isize::MAX`.
    let with_new = in_use.wrapping_add_unsigned(len);
    COUNTS.set(Counts {
        allocations: allocations + 1,
        in_use: with_new.wrapping_sub_unsigned(gone),
        peak: peak.max(with_new),
    });
}

// SAFETY: every call is passed on to `System` as it is, and counting neither allocates nor panics.
unsafe impl GlobalAlloc for CountingHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that `System` asks for; so in all four.
        let block = unsafe { System.alloc(layout) };
        if !block.is_null() {
            count(layout.size(), 0);
        }
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let block = unsafe { System.alloc_zeroed(layout) };
        if !block.is_null() {
            count(layout.size(), 0);
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) };
        let counts = COUNTS.get();
        COUNTS.set(Counts { in_use: counts.in_use.wrapping_sub_unsigned(layout.size()), ..counts });
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        // SAFETY: as above.
        let moved = unsafe { System.realloc(block, layout, len) };
        if !moved.is_null() {
            count(len, layout.size());
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use std::{boxed::Box, hint::black_box, thread, vec, vec::Vec};

    use super::*;

    /// For all unit tests of the crate.
    #[global_allocator]
    static HEAP: CountingHeap = CountingHeap;

    /// What happened since `before`: allocations, and bytes in use more or less.
    fn since(before: HeapUsage) -> (u64, isize) {
        let now = usage();
        (now.allocations - before.allocations, now.in_use.checked_signed_diff(before.in_use).unwrap())
    }

    #[test]
    fn blocks_are_counted_and_given_back() {
        let before = usage();
        let first = black_box(Box::new([0_u8; 1000]));
        let zeroed = black_box(vec![0_u8; 500]);
        assert_eq!(since(before), (2, 1500));
        drop(first);
        assert_eq!(since(before), (2, 500));
        drop(zeroed);
        assert_eq!(since(before), (2, 0));
        assert_eq!(since(usage()), (0, 0), "asking allocates nothing");
    }

    #[test]
    fn resizing_counts_both_blocks_at_the_peak() {
        let mut block: Vec<u8> = black_box(Vec::with_capacity(1000));
        let before = usage();
        reset_peak();
        assert_eq!(usage().peak, before.in_use);
        block.reserve_exact(3000);
        assert_eq!(since(before), (1, 2000));
        assert_eq!(usage().peak, before.in_use + 3000);
        block.shrink_to(100);
        assert_eq!(since(before), (2, -900));
        assert_eq!(usage().peak, before.in_use + 3000, "2000 + 100 is less");
        reset_peak();
        assert_eq!(usage().peak, before.in_use - 900);
    }

    #[test]
    fn the_peak_is_the_most_at_a_time() {
        let before = usage();
        reset_peak();
        for len in [100_usize, 700, 300] {
            drop(black_box(Vec::<u8>::with_capacity(len)));
        }
        assert_eq!(usage().peak - before.in_use, 700);
        assert_eq!(since(before), (3, 0));
    }

    #[test]
    fn each_thread_counts_for_itself() {
        let block = black_box(vec![1_u8; 10_000]);
        let before = usage();
        thread::scope(|scope| {
            scope.spawn(move || {
                drop(block);
                assert_eq!(usage().in_use, 0, "it freed more than it had");
            });
        });
        assert!(usage().in_use >= 10_000, "a block that another thread freed stays counted here");
        assert!(since(before).1.abs() < 10_000);
    }
}
