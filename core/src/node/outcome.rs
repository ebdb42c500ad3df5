//! How a circuit of our own ended, and what its client can learn from that.

use crate::crypto::cgo::HopIndex;
use crate::wire::{CloseReason, EndReason};

/// How a conversation ended, told to its owner once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// What somebody on the path said, and who; authentic. `None` if the circuit closed without a word or bytes were lost, and at an
    /// exit. Without it or a [`crate::node::Output::Finish`] before, what came may not be all.
    pub end: Option<(EndReason, HopIndex)>,
    /// Why the circuit closed; `None` if END came first and the circuit was still open, or if it was our own outside that broke. Not
    /// authenticated beyond the first hop.
    pub close: Option<CloseReason>,
}

/// Whom a circuit's end speaks against, as far as its client can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspect {
    /// This hop.
    Hop(HopIndex),
    /// Somebody on the path, and nobody can prove who: what is known of some hop may be out of date.
    Somebody,
}

impl Outcome {
    /// Whom to avoid on the next path of a circuit that had `hops` hops. `None` if another path would do no better: the exit has spoken about
    /// the target, or our own side broke.
    #[must_use]
    pub fn suspect(&self, hops: usize) -> Option<Suspect> {
        let hop = |at: usize| HopIndex::new(at).filter(|_| at < hops).map_or(Suspect::Somebody, Suspect::Hop);
        match (self.end, self.close) {
            (Some((EndReason::NextHopUnreachable | EndReason::NextHopLost, by)), _) => Some(hop(by.value() + 1)),
            (Some((EndReason::Busy | EndReason::Shutdown | EndReason::Internal, by)), _) => Some(hop(by.value())),
            (Some((EndReason::TimedOut, by)), _) if by.value() + 1 < hops => Some(hop(by.value())),
            (Some(_), _) => None,
            (None, Some(CloseReason::NextHopUnreachable | CloseReason::LinkLost)) => Some(hop(0)),
            (None, Some(_)) => Some(Suspect::Somebody),
            (None, None) => None,
        }
    }

    /// Whether the circuit has not reached its target, as far as its path can be believed: what was sent may be sent again.
    #[must_use]
    pub const fn is_undelivered(&self) -> bool {
        match (self.end, self.close) {
            (Some((EndReason::NextHopUnreachable | EndReason::Busy | EndReason::Shutdown, _)), _) => true,
            (Some(_), _) | (None, None) => false,
            (None, Some(reason)) => matches!(
                reason,
                CloseReason::OnionRejected
                    | CloseReason::Busy
                    | CloseReason::NextHopUnreachable
                    | CloseReason::RoleRefused
                    | CloseReason::Shutdown
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(reason: EndReason, hop: usize) -> Outcome {
        Outcome { end: Some((reason, HopIndex::new(hop).unwrap())), close: None }
    }

    fn closed(reason: CloseReason) -> Outcome {
        Outcome { end: None, close: Some(reason) }
    }

    #[test]
    fn a_hop_is_blamed_for_what_the_one_before_says_of_it() {
        let hop = |at| Some(Suspect::Hop(HopIndex::new(at).unwrap()));
        assert_eq!(ended(EndReason::NextHopUnreachable, 1).suspect(4), hop(2));
        assert_eq!(ended(EndReason::NextHopLost, 0).suspect(4), hop(1));
        assert_eq!(
            ended(EndReason::NextHopLost, 3).suspect(4),
            Some(Suspect::Somebody),
            "the last hop has no next one"
        );
        assert_eq!(closed(CloseReason::LinkLost).suspect(4), hop(0));
        assert_eq!(closed(CloseReason::NextHopUnreachable).suspect(4), hop(0));
    }

    #[test]
    fn a_hop_is_blamed_for_what_it_says_of_itself() {
        let hop = |at| Some(Suspect::Hop(HopIndex::new(at).unwrap()));
        for at in 0..4 {
            assert_eq!(ended(EndReason::Busy, at).suspect(4), hop(at));
            assert_eq!(ended(EndReason::Shutdown, at).suspect(4), hop(at));
        }
        assert_eq!(ended(EndReason::TimedOut, 2).suspect(4), hop(2));
    }

    #[test]
    fn nobody_is_blamed_for_the_target_or_for_us() {
        assert_eq!(ended(EndReason::Refused, 3).suspect(4), None);
        assert_eq!(ended(EndReason::TimedOut, 3).suspect(4), None, "the target's silence");
        assert_eq!(Outcome { end: None, close: None }.suspect(4), None);
        assert_eq!(closed(CloseReason::OnionRejected).suspect(4), Some(Suspect::Somebody));
    }

    #[test]
    fn only_what_cannot_have_arrived_is_undelivered() {
        assert!(ended(EndReason::Busy, 3).is_undelivered());
        assert!(closed(CloseReason::OnionRejected).is_undelivered());
        assert!(!ended(EndReason::NextHopLost, 1).is_undelivered());
        assert!(!closed(CloseReason::LinkLost).is_undelivered());
        assert!(!ended(EndReason::Done, 3).is_undelivered());
    }
}
