//! The device that does it.

use std::{boxed::Box, collections::VecDeque, vec, vec::Vec};

use smoltcp::{
    phy::{self, Device, DeviceCapabilities},
    time::{Duration as Span, Instant},
};

use super::{Faults, PerMille, TIME_MAX};

/// Frames that may wait in one direction. With 100 ms of delay that is 30 Mbit/s of full frames; what comes in excess is dropped, as by
/// any router.
pub const QUEUE_FRAMES: usize = 256;

/// How much longer than the others a reordered frame waits: some hundred microseconds separate the frames of a burst.
const HELD_BACK: Span = Span::from_millis(5);

/// What was done to the frames of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames that came in.
    pub frames: u64,
    /// Lost on purpose.
    pub lost: u64,
    /// Sent on twice.
    pub duplicated: u64,
    /// Held back.
    pub reordered: u64,
    /// With a bit flipped.
    pub corrupted: u64,
    /// Dropped because the queue was full, copies included.
    pub overflowed: u64,
    /// Dropped because they were longer than the device's own limit.
    pub giants: u64,
}

/// SplitMix64: enough for dice, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn hits(&mut self, share: PerMille) -> bool {
        self.roll() % 1000 < u64::from(share.0)
    }
}

/// A frame in the queue.
#[derive(Clone, Copy)]
struct Waiting {
    due: Instant,
    slot: usize,
    len: usize,
}

/// One direction: its dice and the frames that wait, by the time they are due, those due at once in the order they came.
struct Way {
    dice: Dice,
    queue: VecDeque<Waiting>,
    free: Vec<usize>,
    frames: Box<[u8]>,
    frame_max: usize,
    tally: Tally,
}

impl Way {
    fn new(seed: u64, frame_max: usize) -> Self {
        Self {
            dice: Dice(seed),
            queue: VecDeque::with_capacity(QUEUE_FRAMES),
            free: (0..QUEUE_FRAMES).rev().collect(),
            frames: vec![0; QUEUE_FRAMES * frame_max].into_boxed_slice(),
            frame_max,
            tally: Tally::default(),
        }
    }

    /// Decides about a frame and lets it wait accordingly.
    fn offer(&mut self, frame: &[u8], faults: &Faults, now: Instant) {
        self.tally.frames += 1;
        // All dice for every frame, whatever they say: so one frame's fate does not change what the next ones meet.
        let lost = self.dice.hits(faults.loss);
        let duplicated = self.dice.hits(faults.duplicate);
        let reordered = self.dice.hits(faults.reorder);
        let corrupted = self.dice.hits(faults.corrupt);
        let (place, spread) = (self.dice.roll(), self.dice.roll());
        if frame.len() > self.frame_max {
            self.tally.giants += 1;
            return;
        }
        if lost {
            self.tally.lost += 1;
            return;
        }
        let jitter = Span::from(faults.jitter.min(TIME_MAX)).total_micros();
        let delay = Span::from(faults.delay.min(TIME_MAX)).total_micros() + spread % (2 * jitter + 1);
        let mut due = now + Span::from_micros(delay.saturating_sub(jitter));
        if reordered {
            self.tally.reordered += 1;
            due += HELD_BACK;
        }
        let flip = if corrupted && !frame.is_empty() {
            self.tally.corrupted += 1;
            usize::try_from(place % (8 * frame.len() as u64)).ok()
        } else {
            None
        };
        self.wait(frame, flip, due);
        if duplicated {
            self.tally.duplicated += 1;
            self.wait(frame, flip, due);
        }
    }

    fn wait(&mut self, frame: &[u8], flip: Option<usize>, due: Instant) {
        let Some(slot) = self.free.pop() else {
            self.tally.overflowed += 1;
            return;
        };
        let start = slot * self.frame_max;
        let copy = &mut self.frames[start..start + frame.len()];
        copy.copy_from_slice(frame);
        if let Some(bit) = flip {
            copy[bit / 8] ^= 1 << (bit % 8);
        }
        let place = self.queue.partition_point(|waiting| waiting.due <= due);
        self.queue.insert(place, Waiting { due, slot, len: frame.len() });
    }

    /// When the next frame is due.
    fn due(&self) -> Option<Instant> {
        self.queue.front().map(|waiting| waiting.due)
    }

    /// Takes the next frame that is due. Its bytes stay until the next [`Way::offer`].
    fn take(&mut self, now: Instant) -> Option<&[u8]> {
        if self.due()? > now {
            return None;
        }
        let next = self.queue.pop_front()?;
        self.free.push(next.slot);
        let start = next.slot * self.frame_max;
        Some(&self.frames[start..start + next.len])
    }
}

/// A device with a bad network behind it.
///
/// The loop must call [`Faulty::release`] on every turn and wake up at [`Faulty::poll_at`]: nobody else sends what waited. Without faults
/// frames pass straight through.
pub struct Faulty<D: Device> {
    device: D,
    faults: Faults,
    inward: Way,
    outward: Way,
    /// Where the stack writes a frame before its fate is known.
    draft: Box<[u8]>,
}

impl<D: Device> Faulty<D> {
    /// Puts `faults` around `device`. The same seed does the same to the same frames.
    pub fn new(device: D, faults: Faults, seed: u64) -> Self {
        let frame_max = device.capabilities().max_transmission_unit;
        let mut seeds = Dice(seed);
        Self {
            device,
            faults,
            inward: Way::new(seeds.roll(), frame_max),
            outward: Way::new(seeds.roll(), frame_max),
            draft: vec![0; frame_max].into_boxed_slice(),
        }
    }

    /// The device within.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// What is done to frames.
    pub fn faults(&self) -> Faults {
        self.faults
    }

    /// What was done to received frames. Those that pass straight through are not counted.
    pub fn received(&self) -> Tally {
        self.inward.tally
    }

    /// What was done to sent frames, likewise.
    pub fn sent(&self) -> Tally {
        self.outward.tally
    }

    /// When the next frame that waits is due, either way: the loop wakes up then, calls [`Faulty::release`] and polls the stack.
    pub fn poll_at(&self) -> Option<Instant> {
        // `None` is less than any time, so `min` alone would forget one direction for the other.
        [self.inward.due(), self.outward.due()].into_iter().flatten().min()
    }

    /// Sends the frames that have waited long enough.
    pub fn release(&mut self, now: Instant) {
        flush(&mut self.outward, &mut self.device, now);
    }
}

fn flush<D: Device>(outward: &mut Way, device: &mut D, now: Instant) {
    while outward.due().is_some_and(|due| due <= now) {
        // A device that is busy gets the frame on the next turn.
        let Some(token) = device.transmit(now) else { return };
        if let Some(frame) = outward.take(now) {
            phy::TxToken::consume(token, frame.len(), |buffer| buffer.copy_from_slice(frame));
        }
    }
}

impl<D: Device> Device for Faulty<D> {
    type RxToken<'a>
        = RxToken<'a, D>
    where
        Self: 'a;
    type TxToken<'a>
        = TxToken<'a, D>
    where
        Self: 'a;

    fn receive(&mut self, now: Instant) -> Option<(RxToken<'_, D>, TxToken<'_, D>)> {
        let Self { device, faults, inward, outward, draft } = self;
        if faults.is_none() {
            let (rx, tx) = device.receive(now)?;
            return Some((RxToken(Rx::Through(rx)), TxToken(Tx::Through(tx))));
        }
        // No more than the queue holds in one go, so that a flood does not keep the loop here. What is left over is there on the next turn.
        for _ in 0..QUEUE_FRAMES {
            if inward.due().is_some_and(|due| due <= now) {
                break;
            }
            let Some((rx, _)) = device.receive(now) else { break };
            phy::RxToken::consume(rx, |frame| inward.offer(frame, faults, now));
        }
        let frame = inward.take(now)?;
        Some((RxToken(Rx::Waited(frame)), TxToken(Tx::Waits { device, faults, outward, draft, now })))
    }

    fn transmit(&mut self, now: Instant) -> Option<TxToken<'_, D>> {
        let Self { device, faults, outward, draft, .. } = self;
        if faults.is_none() {
            return device.transmit(now).map(|token| TxToken(Tx::Through(token)));
        }
        Some(TxToken(Tx::Waits { device, faults, outward, draft, now }))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.device.capabilities()
    }
}

/// A received frame.
pub struct RxToken<'a, D: Device>(Rx<'a, D>);

enum Rx<'a, D: Device + 'a> {
    Through(D::RxToken<'a>),
    Waited(&'a [u8]),
}

impl<'a, D: Device + 'a> phy::RxToken for RxToken<'a, D> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        match self.0 {
            Rx::Through(token) => token.consume(f),
            Rx::Waited(frame) => f(frame),
        }
    }
}

/// Room for a frame to send.
pub struct TxToken<'a, D: Device>(Tx<'a, D>);

enum Tx<'a, D: Device> {
    Through(D::TxToken<'a>),
    Waits { device: &'a mut D, faults: &'a Faults, outward: &'a mut Way, draft: &'a mut [u8], now: Instant },
}

impl<'a, D: Device + 'a> phy::TxToken for TxToken<'a, D> {
    /// `len` is within the device's limit, as the capabilities say.
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        match self.0 {
            Tx::Through(token) => token.consume(len, f),
            Tx::Waits { device, faults, outward, draft, now } => {
                let frame = &mut draft[..len];
                let result = f(frame);
                outward.offer(frame, faults, now);
                // What is due at once leaves at once.
                flush(outward, device, now);
                result
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use smoltcp::phy::{Medium, RxToken as _, TxToken as _};

    use super::*;

    const MTU: usize = 64;

    /// A device of memory: what it will receive, and what was sent, when.
    #[derive(Default)]
    struct Wire {
        incoming: VecDeque<Vec<u8>>,
        sent: Vec<(i64, Vec<u8>)>,
        busy: bool,
    }

    struct WireRx(Vec<u8>);
    struct WireTx<'a>(&'a mut Wire, Instant);

    impl phy::RxToken for WireRx {
        fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
            f(&self.0)
        }
    }

    impl phy::TxToken for WireTx<'_> {
        fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
            let mut frame = vec![0; len];
            let result = f(&mut frame);
            self.0.sent.push((self.1.total_millis(), frame));
            result
        }
    }

    impl Device for Wire {
        type RxToken<'a> = WireRx;
        type TxToken<'a> = WireTx<'a>;

        fn receive(&mut self, now: Instant) -> Option<(WireRx, WireTx<'_>)> {
            let frame = self.incoming.pop_front()?;
            Some((WireRx(frame), WireTx(self, now)))
        }

        fn transmit(&mut self, now: Instant) -> Option<WireTx<'_>> {
            if self.busy { None } else { Some(WireTx(self, now)) }
        }

        fn capabilities(&self) -> DeviceCapabilities {
            let mut capabilities = DeviceCapabilities::default();
            capabilities.medium = Medium::Ethernet;
            capabilities.max_transmission_unit = MTU;
            capabilities
        }
    }

    fn at(millis: i64) -> Instant {
        Instant::from_millis(millis)
    }

    fn faulty(faults: &str) -> Faulty<Wire> {
        Faulty::new(Wire::default(), faults.parse().unwrap(), 7)
    }

    fn numbered(number: u32) -> [u8; 20] {
        let mut frame = [0x5a; 20];
        frame[..4].copy_from_slice(&number.to_be_bytes());
        frame
    }

    fn send(device: &mut Faulty<Wire>, now: i64, frame: &[u8]) {
        let token = device.transmit(at(now)).unwrap();
        token.consume(frame.len(), |buffer| buffer.copy_from_slice(frame));
    }

    fn receive(device: &mut Faulty<Wire>, now: i64) -> Option<Vec<u8>> {
        let (rx, _) = device.receive(at(now))?;
        Some(rx.consume(<[u8]>::to_vec))
    }

    #[test]
    fn without_faults_frames_pass_untouched() {
        let mut device = faulty("");
        device.device.incoming.push_back(numbered(1).to_vec());
        assert_eq!(receive(&mut device, 0), Some(numbered(1).to_vec()));
        send(&mut device, 3, &numbered(2));
        assert_eq!(device.device.sent, [(3, numbered(2).to_vec())]);
        assert_eq!((device.poll_at(), device.sent(), device.received()), (None, Tally::default(), Tally::default()));
        device.device.busy = true;
        assert!(device.transmit(at(4)).is_none(), "the stack keeps what the device does not take");
    }

    #[test]
    fn delayed_frames_leave_when_due_and_wake_the_loop() {
        let mut device = faulty("delay=100ms");
        send(&mut device, 0, &numbered(1));
        send(&mut device, 10, &numbered(2));
        assert_eq!(device.poll_at(), Some(at(100)));
        device.release(at(99));
        assert_eq!(device.device.sent, []);
        device.release(at(100));
        assert_eq!(device.device.sent, [(100, numbered(1).to_vec())]);
        assert_eq!(device.poll_at(), Some(at(110)));
        device.device.busy = true;
        device.release(at(120));
        assert_eq!(device.poll_at(), Some(at(110)), "a busy device loses nothing");
        device.device.busy = false;
        device.release(at(121));
        assert_eq!(device.device.sent[1..], [(121, numbered(2).to_vec())]);
        assert_eq!(device.poll_at(), None);
    }

    #[test]
    fn delayed_frames_arrive_when_due_with_room_for_the_answer() {
        let mut device = faulty("delay=100ms");
        device.device.incoming.extend([numbered(1).to_vec(), numbered(2).to_vec()]);
        assert_eq!(receive(&mut device, 5), None);
        assert_eq!(device.poll_at(), Some(at(105)));
        let (rx, tx) = device.receive(at(105)).unwrap();
        assert_eq!(rx.consume(<[u8]>::to_vec), numbered(1));
        tx.consume(20, |buffer| buffer.copy_from_slice(&numbered(9)));
        assert_eq!(receive(&mut device, 105), Some(numbered(2).to_vec()));
        assert_eq!(receive(&mut device, 105), None);
        assert_eq!(device.poll_at(), Some(at(205)), "the answer waits in its turn");
    }

    #[test]
    fn shares_are_what_was_asked_for() {
        const FRAMES: u32 = 20_000;
        let mut device = faulty("loss=5,duplicate=10,corrupt=20");
        for number in 0..FRAMES {
            send(&mut device, 0, &numbered(number));
        }
        let tally = device.sent();
        assert_eq!(tally.frames, u64::from(FRAMES));
        assert_eq!(tally.overflowed, 0);
        for (count, expected) in [(tally.lost, 1000), (tally.duplicated, 1900), (tally.corrupted, 3800)] {
            assert!(count.abs_diff(expected) < expected / 5, "{tally:?}");
        }
        assert_eq!(device.device.sent.len() as u64, tally.frames - tally.lost + tally.duplicated);
        let flipped = |frame: &[u8]| frame[4..].iter().map(|byte| (byte ^ 0x5a).count_ones()).sum::<u32>();
        assert!(device.device.sent.iter().all(|(_, frame)| flipped(frame) <= 1), "one bit at most");
        assert!(device.device.sent.iter().any(|(_, frame)| flipped(frame) == 1));
    }

    #[test]
    fn everything_may_be_lost() {
        let mut device = faulty("loss=100");
        for number in 0..1000 {
            send(&mut device, 0, &numbered(number));
            device.device.incoming.push_back(numbered(number).to_vec());
        }
        assert_eq!((0..10).find_map(|_| receive(&mut device, 0)), None);
        assert_eq!((device.sent().lost, device.received().lost, device.device.sent.len()), (1000, 1000, 0));
    }

    #[test]
    fn reordered_frames_come_behind_later_ones() {
        let mut device = faulty("reorder=50");
        for number in 0..40 {
            send(&mut device, 0, &numbered(number));
        }
        let early = device.device.sent.len();
        assert_eq!(early as u64, 40 - device.sent().reordered);
        assert!(early > 5 && early < 35);
        device.release(at(4));
        assert_eq!(device.device.sent.len(), early);
        device.release(at(5));
        assert_eq!(device.device.sent.len(), 40);
        let frames: Vec<_> = device.device.sent.iter().map(|(_, frame)| frame).collect();
        assert!(!frames.is_sorted());
        assert!(frames[..early].is_sorted() && frames[early..].is_sorted(), "otherwise in the order they came");
    }

    #[test]
    fn jitter_stays_within_its_bounds() {
        let mut device = faulty("delay=20ms,jitter=5ms");
        for number in 0..200 {
            send(&mut device, 0, &numbered(number));
        }
        for now in 0..30 {
            device.release(at(now));
        }
        let times: Vec<i64> = device.device.sent.iter().map(|(time, _)| *time).collect();
        assert_eq!(times.len(), 200);
        assert!(times.iter().all(|time| (15..=25).contains(time)), "{times:?}");
        assert!(times.iter().any(|time| *time < 18) && times.iter().any(|time| *time > 22));
    }

    #[test]
    fn a_full_queue_drops_the_newest_and_counts() {
        let mut device = faulty("delay=1s");
        let frames = u32::try_from(QUEUE_FRAMES).unwrap();
        for number in 0..frames + 3 {
            send(&mut device, 0, &numbered(number));
            device.device.incoming.push_back(numbered(number).to_vec());
        }
        assert_eq!(device.sent().overflowed, 3);
        assert_eq!(receive(&mut device, 0), None);
        assert_eq!(device.device.incoming.len(), 3, "a flood does not keep the loop");
        assert_eq!(receive(&mut device, 0), None);
        assert_eq!(device.received().overflowed, 3);
        device.release(at(1000));
        let expected: Vec<_> = (0..frames).map(|number| (1000, numbered(number).to_vec())).collect();
        assert_eq!(device.device.sent, expected);
        let received = (0..frames).map_while(|_| receive(&mut device, 1000)).count();
        assert_eq!((received, receive(&mut device, 1000)), (QUEUE_FRAMES, None));
        // The places are free again.
        send(&mut device, 1000, &numbered(0));
        assert_eq!((device.sent().overflowed, device.poll_at()), (3, Some(at(2000))));
    }

    #[test]
    fn frames_longer_than_the_limit_are_dropped() {
        let mut device = faulty("delay=1ms");
        device.device.incoming.extend([vec![0; MTU + 1], vec![1; MTU], vec![]]);
        assert_eq!(receive(&mut device, 0), None);
        assert_eq!(receive(&mut device, 1), Some(vec![1; MTU]));
        assert_eq!(receive(&mut device, 1), Some(vec![]));
        assert_eq!(device.received().giants, 1);
    }

    #[test]
    fn the_seed_decides_and_each_direction_decides_alone() {
        let run = |seed, receive_too: bool| {
            let faults = Faults {
                loss: PerMille::new(300).unwrap(),
                duplicate: PerMille::new(300).unwrap(),
                reorder: PerMille::new(300).unwrap(),
                corrupt: PerMille::new(300).unwrap(),
                delay: Duration::from_millis(3),
                jitter: Duration::from_millis(2),
            };
            let mut device = Faulty::new(Wire::default(), faults, seed);
            for number in 0..100 {
                send(&mut device, i64::from(number), &numbered(number));
                device.release(at(i64::from(number)));
                if receive_too {
                    device.device.incoming.push_back(numbered(number).to_vec());
                    let _ = receive(&mut device, i64::from(number));
                }
            }
            device.device.sent
        };
        assert_eq!(run(1, false), run(1, true));
        assert_ne!(run(1, false), run(2, false));
    }
}
