//! When a node asks and tests, and what its steward has to say: what a host's gossip task does.

use std::time::Duration;

use bulbil_core::phonebook::exchange::{Due, Exchanged, Pace, TestLoad};
use bulbil_core::phonebook::steward::{Notice, Now};
use rand_core::Rng as _;

use super::{Alarm, City, Start};
use crate::sim::NodeIndex;

/// Tests at one time.
const TESTS: usize = 4;
/// Between two looks of a steward at clock and phonebook; a host's looks every second.
const LOOK: Duration = Duration::from_secs(10);

impl City<'_, '_, '_> {
    /// The moment by a node's own clocks.
    pub(super) fn now_of(&self, node: NodeIndex) -> Now {
        Now { instant: self.net.instant(), date: self.net.calendar(node) }
    }

    /// The pace of a node's tests and exchanges begins.
    pub(super) fn begin_pace(&mut self, node: NodeIndex) {
        if matches!(self.plan.start, Start::Extras { .. }) && !self.heirs().contains(&node) {
            return;
        }
        // Founders that know each other did not all start at this moment.
        let founder = self.now().is_zero() && !self.citizens[node].book().is_empty();
        let wait = if founder { u64::from(self.rng.next_u32() % 60_000) } else { 10 };
        let at = self.net.instant().after(Duration::from_millis(wait));
        let citizen = &mut self.citizens[node];
        citizen.pace = Some(Pace::new(self.plan.settings, at));
        citizen.idle_since = at;
        self.set_alarm(node, Duration::from_millis(wait), Alarm::Pace);
        self.set_alarm(node, LOOK, Alarm::Look);
    }

    /// The steward looks at clock and phonebook.
    pub(super) fn look(&mut self, node: NodeIndex) {
        let now = self.now_of(node);
        self.citizens[node].steward.handle_timeout(now);
        self.pass_on(node);
        self.set_alarm(node, LOOK, Alarm::Look);
    }

    /// What the steward has to say after something was done with it.
    pub(super) fn pass_on(&mut self, node: NodeIndex) {
        let now = self.net.instant();
        let citizen = &mut self.citizens[node];
        while let Some(notice) = citizen.steward.poll_notice() {
            let Some(pace) = &mut citizen.pace else { continue };
            match notice {
                Notice::News | Notice::LinksDue => {
                    pace.handle_news(now);
                    if std::mem::take(&mut citizen.lone) {
                        pace.handle_first_contact(now);
                    }
                }
                Notice::Dropped(_) | Notice::ClockSet | Notice::ClockWrong { .. } | Notice::ClockRight => {}
            }
        }
        self.arm_pace(node);
    }

    pub(super) fn handle_pace(&mut self, node: NodeIndex) {
        let now = self.net.instant();
        while let Some(due) = self.citizens[node].pace.as_mut().and_then(|pace| pace.poll(now)) {
            match due {
                Due::Exchange => {
                    if !self.begin_exchange(node) {
                        self.rest(node, Exchanged::Failed);
                    }
                }
                Due::Test => {
                    let load = self.take_turn(node);
                    let citizen = &mut self.citizens[node];
                    if let Some(pace) = &mut citizen.pace {
                        pace.handle_test_begun(load, now, &mut citizen.rng);
                    }
                }
            }
        }
        self.arm_pace(node);
    }

    /// The turn for a test.
    fn take_turn(&mut self, node: NodeIndex) -> TestLoad {
        let (now, test_idle) = (self.now_of(node), self.plan.settings.test_idle);
        let citizen = &mut self.citizens[node];
        // Without room for a test nobody's turn has come.
        if citizen.visits.values().filter(|visit| visit.bootstrap.is_none()).count() >= TESTS {
            return TestLoad::Waiting;
        }
        let idle = now.instant >= citizen.idle_since.after(test_idle);
        if idle {
            citizen.idle_since = now.instant;
        }
        let (test, load) = citizen.steward.poll_test(idle, now, &mut citizen.rng);
        if let Some(test) = test {
            self.test(node, test);
        }
        self.pass_on(node);
        load
    }

    /// A path has failed.
    pub(super) fn handle_path_failed(&mut self, node: NodeIndex) {
        let now = self.net.instant();
        if let Some(pace) = &mut self.citizens[node].pace {
            pace.handle_path_failed(now);
        }
        self.arm_pace(node);
    }

    /// Makes sure that the node is called when its pace is due, and not more often than that.
    fn arm_pace(&mut self, node: NodeIndex) {
        let now = self.net.instant();
        let citizen = &mut self.citizens[node];
        let Some(at) = citizen.pace.as_ref().and_then(Pace::poll_timeout) else { return };
        let armed = citizen.armed.filter(|&armed| armed > now);
        if armed.is_none_or(|armed| at < armed) {
            citizen.armed = Some(at);
            let wait = Duration::from_millis(at.millis().saturating_sub(now.millis()));
            self.set_alarm(node, wait, Alarm::Pace);
        }
    }

    /// An exchange is over, or could not begin. What failed in the exchange itself is no reason for another one at once.
    pub(super) fn rest(&mut self, node: NodeIndex, exchanged: Exchanged) {
        let now = self.net.instant();
        let citizen = &mut self.citizens[node];
        citizen.last = Some(exchanged).filter(|&exchanged| exchanged != Exchanged::Failed).or(citizen.last);
        if let Some(pace) = &mut citizen.pace {
            pace.handle_exchanged(exchanged, now, &mut citizen.rng);
        }
        self.arm_pace(node);
    }
}
