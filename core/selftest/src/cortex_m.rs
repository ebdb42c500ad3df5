//! The runtime on a bare Cortex-M: memory, a heap for RSA, a console and an end by semihosting.

use core::mem::MaybeUninit;
use core::panic::PanicInfo;
use core::ptr::addr_of_mut;

use bulbil_core_selftest::{Memory, Verdict, run};
// Its critical section is the allocator's lock.
use cortex_m as _;
use cortex_m_rt::{ExceptionFrame, entry, exception};
use cortex_m_semihosting::{debug, hio, hprintln};
use embedded_alloc::LlffHeap;

/// The five identities, and what one RSA operation needs.
const HEAP_LEN: usize = 64 * 1024;

#[global_allocator]
static HEAP: LlffHeap = LlffHeap::empty();

#[entry]
fn main() -> ! {
    static mut MEMORY: Memory = Memory::new();
    static mut HEAP_MEMORY: [MaybeUninit<u8>; HEAP_LEN] = [MaybeUninit::uninit(); HEAP_LEN];
    // SAFETY: `entry` gives this memory to this function alone, which is called once, and nothing has allocated yet.
    unsafe { HEAP.init(addr_of_mut!(*HEAP_MEMORY) as usize, HEAP_LEN) };
    let Ok(mut console) = hio::hstdout() else { end(debug::EXIT_FAILURE) };
    end(match run(MEMORY, &mut console) {
        Verdict::Passed => debug::EXIT_SUCCESS,
        Verdict::Failed => debug::EXIT_FAILURE,
    })
}

fn end(status: debug::ExitStatus) -> ! {
    debug::exit(status);
    unreachable!("the emulator has ended")
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    hprintln!("{}\nself-test FAILED: panicked", info);
    loop {
        debug::exit(debug::EXIT_FAILURE);
    }
}

// SAFETY: it only prints and ends; nothing of what was interrupted goes on.
#[exception]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    hprintln!("{:?}\nself-test FAILED: hard fault", frame);
    loop {
        debug::exit(debug::EXIT_FAILURE);
    }
}
