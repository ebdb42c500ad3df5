//! How much stack a run takes: it gets a stack of its own, painted beforehand, and afterwards the paint tells how deep it went.

#![allow(unsafe_code, reason = "reads and writes the unused part of a stack")]

use core::{
    ffi::c_void,
    hint::black_box,
    marker::PhantomData,
    mem::MaybeUninit,
    ptr::{self, NonNull},
};
use std::{io, panic, thread};

use nix::{errno::Errno, libc};

/// What unused stack holds. Granularity of the measure: a word that the run leaves or sets to this value counts as unused.
const PAINT: usize = 0xb01b_b01b_b01b_b01b_u64 as usize;

/// Left unpainted beneath the frame that paints, in bytes: what that frame and those it calls may use themselves.
const SLACK: usize = 1024;

/// The paint of the stack that the calling thread runs on.
///
/// It cannot leave the thread: only on its own stack is the place below the current frame known to be unused.
pub struct StackGauge {
    /// The lowest painted word.
    lowest: NonNull<usize>,
    /// How many words are painted from there up.
    painted: usize,
    /// Where the frame ends that calls the measured function.
    entry: usize,
    thread: PhantomData<*const ()>,
}

impl StackGauge {
    /// The most bytes that were used so far below the entry of the measured function, in steps of a word.
    ///
    /// Never less than what was written to (a frame that was reserved but not written to does not show). A run that uses less than about a kilobyte
    /// counts as one that uses this much: the paint begins there.
    #[must_use]
    pub fn high_water(&self) -> usize {
        let untouched = (0..self.painted)
            .take_while(|&word| {
                // SAFETY: within the words that `paint` wrote, on this thread's own stack, which is mapped as long as the thread
                // lives. Volatile, because what is there now is nobody's value.
                unsafe { self.lowest.add(word).read_volatile() == PAINT }
            })
            .count();
        self.entry - (self.lowest.addr().get() + untouched * size_of::<usize>())
    }

    /// The most that [`StackGauge::high_water`] could show: beyond, the run would have met the end of its stack.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.entry - self.lowest.addr().get()
    }
}

/// Runs `f` on a thread of its own with a stack of at least `stack_size` bytes (the C library may hand out one that a former
/// thread left, which is larger) and lets it ask how much of it was used.
/// A panic of `f` goes on in the caller.
///
/// # Errors
///
/// The system's, if there is no thread or no stack to be had.
pub fn run_measured<T: Send>(stack_size: usize, f: impl FnOnce(&StackGauge) -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let measured = thread::Builder::new().stack_size(stack_size).spawn_scoped(scope, || paint_and_call(f))?;
        measured.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}

/// Not inlined, nor what it calls: so the marker lies above all that `f` uses, and by no more than this one frame.
#[inline(never)]
fn paint_and_call<T>(f: impl FnOnce(&StackGauge) -> T) -> io::Result<T> {
    let marker = 0_usize;
    let gauge = paint(black_box(&raw const marker).addr())?;
    Ok(call(f, &gauge))
}

#[inline(never)]
fn call<T>(f: impl FnOnce(&StackGauge) -> T, gauge: &StackGauge) -> T {
    f(gauge)
}

/// The lowest address of the calling thread's stack, above its guard.
fn stack_end() -> io::Result<*mut c_void> {
    let check = |result| if result == 0 { Ok(()) } else { Err(io::Error::from(Errno::from_raw(result))) };
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut end, mut size, mut guard) = (ptr::null_mut(), 0, 0);
    // SAFETY: `pthread_getattr_np` initialises the attributes of the calling thread, the two next calls only read them, and the last
    // frees what the first allocated.
    unsafe {
        check(libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()))?;
        let read = check(libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut end, &raw mut size))
            .and_then(|()| check(libc::pthread_attr_getguardsize(attributes.as_ptr(), &raw mut guard)));
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        read?;
    }
    // Older C libraries count the guard as part of the stack, and there is no way to tell.
    Ok(end.wrapping_byte_add(guard))
}

/// Paints the calling thread's stack from its end to a little below this frame.
#[inline(never)]
fn paint(entry: usize) -> io::Result<StackGauge> {
    let end = stack_end()?;
    let marker = 0_usize;
    let here = black_box(&raw const marker).addr();
    let lowest = end.cast::<usize>().map_addr(|end| end.next_multiple_of(align_of::<usize>()));
    let too_small = || io::Error::new(io::ErrorKind::InvalidInput, "the stack is too small to be measured");
    let painted = here.checked_sub(SLACK + lowest.addr()).ok_or_else(too_small)? / size_of::<usize>();
    for word in 0..painted {
        // SAFETY: between the stack's end (above the guard) and `SLACK` bytes below this frame: mapped, and used by nobody.
        unsafe { lowest.add(word).write_volatile(PAINT) };
    }
    let lowest = NonNull::new(lowest).ok_or_else(too_small)?;
    Ok(StackGauge { lowest, painted, entry, thread: PhantomData })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STACK: usize = 512 * 1024;
    /// The frames between the entry and the array, and what unoptimised code adds.
    const LITTLE: usize = 4 * 1024;

    /// Uses at least `N` bytes of stack and gives them back.
    #[inline(never)]
    fn deep<const N: usize>() -> u8 {
        let array = black_box([1_u8; N]);
        array[black_box(N / 2)]
    }

    #[test]
    fn an_array_raises_the_mark_by_its_length() {
        let (before, small, large, after) = run_measured(STACK, |gauge| {
            let before = gauge.high_water();
            deep::<10_000>();
            let small = gauge.high_water();
            deep::<200_000>();
            let large = gauge.high_water();
            deep::<10_000>();
            (before, small, large, gauge.high_water())
        })
        .unwrap();
        assert!((SLACK..SLACK + LITTLE).contains(&before), "{before}");
        // `black_box` may copy the array once.
        assert!((10_000..2 * 10_000 + LITTLE).contains(&small), "{small}");
        assert!((200_000..2 * 200_000 + LITTLE).contains(&large), "{large}");
        assert_eq!(after, large, "a high-water mark does not fall");
    }

    #[test]
    fn the_mark_shows_the_very_word() {
        /// Writes one word at the lower end of `N` bytes.
        #[inline(never)]
        fn touch<const N: usize>() -> usize {
            let mut array = MaybeUninit::<[usize; N]>::uninit();
            let first = black_box(array.as_mut_ptr()).cast::<usize>();
            // SAFETY: the first word of the array.
            unsafe { first.write_volatile(0) };
            first.addr()
        }
        run_measured(STACK, |gauge| {
            let touched = touch::<4000>();
            let mark = gauge.entry - gauge.high_water();
            assert!(mark <= touched, "at least down to there");
            assert!(touched - mark < 256, "and no further than the frame itself: {}", touched - mark);
        })
        .unwrap();
    }

    #[test]
    fn the_limit_is_no_less_than_was_asked_for() {
        let (limit, used) = run_measured(STACK, |gauge| (gauge.limit(), gauge.high_water())).unwrap();
        assert!(limit >= STACK - 16 * 1024, "{limit}");
        assert!(used < limit);
    }

    #[test]
    fn results_and_panics_come_through() {
        assert_eq!(run_measured(STACK, |_| 7).unwrap(), 7);
        let caught = panic::catch_unwind(|| run_measured(STACK, |_| panic::resume_unwind(std::boxed::Box::new(3_u8))));
        assert_eq!(caught.err().and_then(|panic| panic.downcast::<u8>().ok()), Some(std::boxed::Box::new(3)));
    }
}
