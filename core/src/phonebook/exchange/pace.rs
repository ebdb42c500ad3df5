//! When to ask for descriptors and when to test a node. `PROTOCOL.md` sections 18.2 and 18.3.

use core::time::Duration;

use rand_core::CryptoRng;

use crate::time::Instant;

/// How long between exchanges and between tests; each time a fifth more or less, at random, so that nodes do not fall into step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Between exchanges.
    pub exchange: Duration,
    /// Between exchanges while there is more to be had. After an exchange that failed too, then twice as long each time, up to `exchange`.
    pub exchange_busy: Duration,
    /// Between tests while somebody waits for one.
    pub test: Duration,
    /// Between tests otherwise.
    pub test_idle: Duration,
}

impl Settings {
    /// What nodes use unless told otherwise.
    pub const DEFAULT: Self = Self {
        exchange: Duration::from_secs(60),
        exchange_busy: Duration::from_secs(2),
        test: Duration::from_secs(2),
        test_idle: Duration::from_secs(30),
    };
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Due {
    /// Ask somebody; then [`Pace::handle_exchanged`], also if there was nobody to ask.
    Exchange,
    /// Test somebody; then [`Pace::handle_test_begun`], also if there was nobody to test.
    Test,
}

/// What came of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exchanged {
    /// As many descriptors as were wanted, and enough of them new: there is more to be had.
    Full,
    /// Fewer, or little that was new.
    Partial,
    /// No answer, or one that was refused; or there was nobody to ask.
    Failed,
}

/// What is left to be tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TestLoad {
    /// Nodes that nobody has met yet, or that others wait for.
    Waiting,
    /// Nobody urgent.
    Idle,
}

/// The schedule. Both kinds begin at once; exchanges follow each other's end, tests each other's beginning.
#[derive(Debug, Clone)]
pub struct Pace {
    settings: Settings,
    /// `None` while one goes on.
    exchange: Option<Instant>,
    /// Exchanges in a row that failed.
    failures: u8,
    /// When the last exchange was over.
    exchanged: Option<Instant>,
    /// When the last path failed.
    path_failed: Option<Instant>,
    /// Since the last exchange, before a path that fails brings the next one forward.
    spacing: Duration,
    /// `None` between [`Due::Test`] and its answer.
    test: Option<Instant>,
    /// When the last test began.
    tested: Option<Instant>,
}

impl Pace {
    /// Everything is due at `now`.
    #[must_use]
    pub const fn new(settings: Settings, now: Instant) -> Self {
        Self {
            settings,
            exchange: Some(now),
            failures: 0,
            exchanged: None,
            path_failed: None,
            spacing: settings.exchange_busy,
            test: Some(now),
            tested: None,
        }
    }

    /// What is due, each once until it is answered.
    pub fn poll(&mut self, now: Instant) -> Option<Due> {
        let is_due = |at: &mut Instant| *at <= now;
        if self.exchange.take_if(is_due).is_some() {
            return Some(Due::Exchange);
        }
        self.test.take_if(is_due)?;
        self.tested = Some(now);
        Some(Due::Test)
    }

    /// When [`Pace::poll`] must be called; `None` while everything that was due is under way.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.exchange.into_iter().chain(self.test).min()
    }

    /// An exchange is over.
    pub fn handle_exchanged<R: CryptoRng + ?Sized>(&mut self, outcome: Exchanged, now: Instant, rng: &mut R) {
        let Settings { exchange, exchange_busy, .. } = self.settings;
        self.failures = if outcome == Exchanged::Failed { self.failures.saturating_add(1) } else { 0 };
        let span = match outcome {
            Exchanged::Full => exchange_busy,
            Exchanged::Partial => exchange,
            Exchanged::Failed => {
                let factor = 1u32.checked_shl(u32::from(self.failures) - 1).unwrap_or(u32::MAX);
                exchange_busy.saturating_mul(factor).min(exchange)
            }
        };
        (self.exchange, self.exchanged) = (Some(now.after(jitter(span, rng))), Some(now));
    }

    /// A test has begun, or there was nobody to test; `load` is what is left.
    pub fn handle_test_begun<R: CryptoRng + ?Sized>(&mut self, load: TestLoad, now: Instant, rng: &mut R) {
        let span = match load {
            TestLoad::Waiting => self.settings.test,
            TestLoad::Idle => self.settings.test_idle,
        };
        self.test = Some(now.after(jitter(span, rng)));
    }

    /// There is somebody new to be tested: not before the time between tests has passed, but then.
    pub fn handle_news(&mut self, now: Instant) {
        let soonest = self.tested.map_or(now, |tested| tested.after(self.settings.test).max(now));
        self.test = self.test.map(|at| at.min(soonest));
    }

    /// A path has failed, and others may know what has become of its hops: the next exchange is brought forward, to [`Settings::exchange_busy`] after the
    /// last one if that has not passed, and to twice as long after it each further time, up to [`Settings::exchange`], until no path has failed for
    /// that long. For whoever can spoil one path after the other must not decide how often others are asked.
    pub fn handle_path_failed(&mut self, now: Instant) {
        let Settings { exchange, exchange_busy, .. } = self.settings;
        let Some(due) = self.exchange else { return };
        if self.path_failed.replace(now).is_none_or(|last| last.after(exchange) <= now) {
            (self.spacing, self.failures) = (exchange_busy, 0);
        }
        let soonest = self.exchanged.map_or(now, |last| last.after(self.spacing).max(now));
        if soonest < due {
            self.exchange = Some(soonest);
            self.spacing = self.spacing.saturating_mul(2).min(exchange);
        }
    }

    /// There is somebody to ask, and before there was nobody: at once, unless an exchange goes on.
    pub fn handle_first_contact(&mut self, now: Instant) {
        self.failures = 0;
        self.exchange = self.exchange.map(|at| at.min(now));
    }
}

/// `span`, give or take a fifth.
fn jitter<R: CryptoRng + ?Sized>(span: Duration, rng: &mut R) -> Duration {
    let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let fifth = millis / 5;
    // The remainder's bias is far below what any clock measures.
    let drawn = rng.next_u64() % (2 * fifth + 1);
    Duration::from_millis((millis - fifth).saturating_add(drawn))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand_chacha::ChaCha20Rng;

    use super::super::super::testing::rng;
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(1000 * seconds)
    }

    /// Whether the next exchange, whose last ended at `now`, comes after `seconds`, give or take a fifth.
    fn follows(pace: &Pace, now: Instant, seconds: u64) -> bool {
        let span = now.until(pace.exchange.unwrap());
        (Duration::from_millis(800 * seconds)..=Duration::from_millis(1200 * seconds)).contains(&span)
    }

    fn begun() -> (Pace, ChaCha20Rng) {
        let mut pace = Pace::new(Settings::DEFAULT, at(100));
        assert_eq!(pace.poll_timeout(), Some(at(100)));
        assert_eq!([0, 1, 2].map(|_| pace.poll(at(100))), [Some(Due::Exchange), Some(Due::Test), None]);
        assert_eq!(pace.poll_timeout(), None);
        (pace, rng(1))
    }

    #[test]
    fn asks_again_soon_while_answers_are_full() {
        let (mut pace, mut rng) = begun();
        pace.handle_exchanged(Exchanged::Full, at(105), &mut rng);
        assert!(follows(&pace, at(105), 2));
        assert_eq!(pace.poll(at(106)), None);
        assert_eq!(pace.poll(at(108)), Some(Due::Exchange));
        assert_eq!(pace.poll(at(900)), None, "one at a time");
        pace.handle_exchanged(Exchanged::Partial, at(900), &mut rng);
        assert!(follows(&pace, at(900), 60));
    }

    #[test]
    fn asks_ever_later_while_nobody_answers() {
        let (mut pace, mut rng) = begun();
        for seconds in [2, 4, 8, 16, 32, 60, 60] {
            pace.handle_exchanged(Exchanged::Failed, at(200), &mut rng);
            assert!(follows(&pace, at(200), seconds), "{seconds}");
        }
        for _ in 0..300 {
            pace.handle_exchanged(Exchanged::Failed, at(200), &mut rng);
            assert!(follows(&pace, at(200), 60));
        }
        pace.handle_exchanged(Exchanged::Partial, at(200), &mut rng);
        pace.handle_exchanged(Exchanged::Failed, at(200), &mut rng);
        assert!(follows(&pace, at(200), 2), "the count begins anew");
    }

    #[test]
    fn asks_at_once_when_there_is_somebody_to_ask() {
        let (mut pace, mut rng) = begun();
        pace.handle_first_contact(at(101));
        assert_eq!(pace.poll(at(101)), None, "one goes on");
        for _ in 0..6 {
            pace.handle_exchanged(Exchanged::Failed, at(102), &mut rng);
        }
        pace.handle_first_contact(at(103));
        assert_eq!(pace.poll(at(103)), Some(Due::Exchange));
        pace.handle_exchanged(Exchanged::Failed, at(103), &mut rng);
        assert!(follows(&pace, at(103), 2));
    }

    #[test]
    fn whoever_spoils_every_path_makes_a_node_ask_hardly_more_often() {
        let (mut pace, mut rng) = begun();
        pace.handle_exchanged(Exchanged::Partial, at(100), &mut rng);
        let mut asked = std::vec::Vec::new();
        for second in 100..100 + 3600 {
            pace.handle_path_failed(at(second));
            if pace.poll(at(second)) == Some(Due::Exchange) {
                asked.push(second - 100);
                pace.handle_path_failed(at(second));
                assert_eq!(pace.exchange, None, "one goes on");
                pace.handle_exchanged(Exchanged::Partial, at(second), &mut rng);
            }
        }
        assert_eq!(asked[..5], [2, 6, 14, 30, 62]);
        // One a minute, give or take a fifth, would be 60.
        assert!((60..=70).contains(&asked.len()), "{asked:?}");

        // As soon as no path has failed for as long as from exchange to exchange, the next one that does counts as the first one did.
        let last = 100 + 3600 - 1;
        for (quiet, spacing) in [(59, 60), (60, 2)] {
            let mut pace = pace.clone();
            pace.exchange = None;
            pace.handle_exchanged(Exchanged::Partial, at(last + quiet), &mut rng);
            let due = pace.exchange.unwrap();
            pace.handle_path_failed(at(last + quiet));
            assert_eq!(pace.exchange, Some(due.min(at(last + quiet + spacing))));
        }
    }

    #[test]
    fn a_path_that_fails_does_not_put_an_exchange_off() {
        let (mut pace, mut rng) = begun();
        pace.handle_exchanged(Exchanged::Partial, at(100), &mut rng);
        (0..3).for_each(|_| pace.handle_path_failed(at(101)));
        assert_eq!([101, 102].map(|second| pace.poll(at(second))), [None, Some(Due::Exchange)]);
        pace.handle_exchanged(Exchanged::Full, at(102), &mut rng);
        let due = pace.exchange;
        pace.handle_path_failed(at(102));
        assert_eq!(pace.exchange, due);
    }

    #[test]
    fn tests_follow_each_other_sooner_while_somebody_waits() {
        let (mut pace, mut rng) = begun();
        pace.handle_test_begun(TestLoad::Waiting, at(100), &mut rng);
        let span = at(100).until(pace.poll_timeout().unwrap());
        assert!((1600..=2400).contains(&span.as_millis()), "{span:?}");
        assert_eq!(pace.poll(at(103)), Some(Due::Test));
        pace.handle_test_begun(TestLoad::Idle, at(103), &mut rng);
        let span = at(103).until(pace.poll_timeout().unwrap());
        assert!((24_000..=36_000).contains(&span.as_millis()), "{span:?}");
        pace.handle_news(at(104));
        assert_eq!(pace.poll_timeout(), Some(at(105)));
        pace.handle_news(at(110));
        assert_eq!(pace.poll_timeout(), Some(at(105)), "no later than before");
        assert_eq!(pace.poll(at(110)), Some(Due::Test));
        pace.handle_news(at(110));
        assert_eq!(pace.poll_timeout(), None, "its answer says what is left");
        pace.handle_test_begun(TestLoad::Idle, at(110), &mut rng);
        pace.handle_news(at(120));
        assert_eq!(pace.poll(at(120)), Some(Due::Test));
    }

    #[test]
    fn jitter_is_a_fifth_either_way_and_uses_all_of_it() {
        let mut rng = rng(7);
        let spans: std::vec::Vec<_> =
            (0..4000).map(|_| jitter(Duration::from_secs(60), &mut rng).as_millis()).collect();
        let (least, most) = (*spans.iter().min().unwrap(), *spans.iter().max().unwrap());
        assert!((48_000..48_100).contains(&least) && (71_900..=72_000).contains(&most), "{least} {most}");
        let mean = spans.iter().sum::<u128>() / 4000;
        assert!((59_600..60_400).contains(&mean), "{mean}");
    }

    proptest! {
        #[test]
        fn any_settings_go_on_for_ever(
            spans in any::<[Duration; 4]>(),
            events in proptest::collection::vec((0u8..7, 0u64..1_000_000), 0..60),
        ) {
            let [exchange, exchange_busy, test, test_idle] = spans;
            let mut pace = Pace::new(Settings { exchange, exchange_busy, test, test_idle }, at(0));
            let (mut now, mut rng) = (0, rng(1));
            let mut open = (false, false);
            for (event, passed) in events {
                now += passed;
                let now = Instant::from_millis(now);
                match event {
                    0 if open.0 => pace.handle_exchanged(Exchanged::Full, now, &mut rng),
                    1 if open.0 => pace.handle_exchanged(Exchanged::Failed, now, &mut rng),
                    2 if open.1 => pace.handle_test_begun(TestLoad::Waiting, now, &mut rng),
                    3 => pace.handle_news(now),
                    4 => pace.handle_first_contact(now),
                    5 => pace.handle_path_failed(now),
                    _ => match pace.poll(now) {
                        Some(Due::Exchange) => prop_assert!(!core::mem::replace(&mut open.0, true)),
                        Some(Due::Test) => prop_assert!(!core::mem::replace(&mut open.1, true)),
                        None => prop_assert!(pace.poll_timeout().is_none_or(|at| at > now)),
                    },
                }
                open.0 &= pace.exchange.is_none();
                open.1 &= pace.test.is_none();
                prop_assert_eq!((pace.exchange.is_none(), pace.test.is_none()), open, "what is under way is not due");
            }
        }
    }
}
