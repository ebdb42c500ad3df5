//! Choosing paths, `PROTOCOL.md` section 11.
//!
//! The last hop is drawn first, because fewest nodes can take that place, then the first hop from the guards, then the
//! relays between them: each uniformly among the nodes that are allowed there. Nodes that would leave too few relays
//! for the rest are not allowed as last hop, so a draw never ends in a blind alley.

use core::net::SocketAddr;

use heapless::Vec;
use rand_core::CryptoRng;

use super::{Entry, Guards, NetworkGroup, Phonebook};
use crate::wire::{Descriptor, NodeId, ProtocolVersion, Target, UnixTime};

/// Most hops on a path.
pub const PATH_MAX: usize = 4;

/// How many hops a path has, 1 to 4, the last one included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HopCount(u8);

impl HopCount {
    /// `hops` hops, or `None` if that is not 1 to 4.
    #[must_use]
    pub const fn new(hops: u8) -> Option<Self> {
        if hops == 0 || hops as usize > PATH_MAX { None } else { Some(Self(hops)) }
    }

    /// The number of hops.
    #[must_use]
    pub const fn value(self) -> usize {
        self.0 as usize
    }
}

impl Default for HopCount {
    /// Three relays and an exit.
    fn default() -> Self {
        Self(PATH_MAX as u8)
    }
}

/// What the last hop of a path has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LastHop {
    /// An exit that may connect to the port, or any exit if it is not known yet.
    Exit {
        /// The target's port.
        port: Option<u16>,
    },
    /// Any relay or exit: the target is a service that every node has.
    Service,
    /// This node.
    Node(NodeId),
}

impl From<&Target> for LastHop {
    fn from(target: &Target) -> Self {
        match target {
            Target::Tcp(_, port) => Self::Exit { port: Some(*port) },
            Target::Service(_) => Self::Service,
        }
    }
}

/// How much it matters that the hops are in different network groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Strictness {
    /// In different groups when that is possible, otherwise in as many as the draw finds.
    #[default]
    Prefer,
    /// In different groups or not at all.
    Require,
    /// All the same: a test network on one machine.
    Ignore,
}

/// What a path is wanted for.
#[derive(Debug, Clone, Copy)]
pub struct PathRequest<'a> {
    /// How many hops.
    pub hops: HopCount,
    /// What the last hop has to be.
    pub last: LastHop,
    /// How much different network groups matter.
    pub strictness: Strictness,
    /// Nodes that must not be on the path, such as hops that have just failed.
    pub avoid: &'a [NodeId],
    /// The time, for the validity of descriptors.
    pub now: UnixTime,
}

impl PathRequest<'_> {
    /// A path of the default length that ends at `last`.
    #[must_use]
    pub fn new(last: LastHop, now: UnixTime) -> Self {
        Self { hops: HopCount::default(), last, strictness: Strictness::default(), avoid: &[], now }
    }

    fn can_be_hop(&self, choice: &Choice<'_>) -> bool {
        let descriptor = choice.descriptor();
        descriptor.protocol == ProtocolVersion::V1
            && descriptor.is_valid_at(self.now)
            && !self.avoid.contains(&choice.node())
    }

    pub(super) fn can_relay(&self, choice: &Choice<'_>) -> bool {
        choice.descriptor().roles.relay && self.can_be_hop(choice)
    }

    fn can_be_last(&self, choice: &Choice<'_>) -> bool {
        let roles = choice.descriptor().roles;
        let suitable = match self.last {
            LastHop::Exit { port } => roles.exit && port.is_none_or(|port| choice.descriptor().accepts_port(port)),
            LastHop::Service => roles.relay || roles.exit,
            LastHop::Node(node) => choice.node() == node,
        };
        suitable && self.can_be_hop(choice)
    }
}

/// Why no path can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PathError {
    /// Exits are known, and none of them accepts the target's port.
    NoExitForPort(u16),
    /// No exit is known, or no node for a service.
    NoLastHop,
    /// The node that the path should end at is not known, not valid or avoided.
    UnknownNode,
    /// Too few relays are known for the hops before the last one.
    TooFewRelays {
        /// Usable relays besides the last hop.
        known: usize,
        /// Relays that the path needs.
        needed: usize,
    },
    /// The known relays are in too few network groups.
    TooFewGroups {
        /// Groups with a usable relay besides the last hop's group, counted up to what is needed.
        known: usize,
        /// Groups that the path needs.
        needed: usize,
    },
    /// Every guard is in the network group of every possible last hop.
    GuardsInGroup,
}

impl core::fmt::Display for PathError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoExitForPort(port) => write!(f, "no known exit accepts port {port}"),
            Self::NoLastHop => f.write_str("no suitable last hop is known"),
            Self::UnknownNode => f.write_str("the node at the end of the path is not known"),
            Self::TooFewRelays { known, needed } => write!(f, "{known} relays known, {needed} needed"),
            Self::TooFewGroups { known, needed } => {
                write!(f, "relays known in {known} network groups, {needed} needed")
            }
            Self::GuardsInGroup => f.write_str("guards and last hop are in one network group"),
        }
    }
}

impl core::error::Error for PathError {}

/// A node on a path. Its keys stay in the phonebook: [`Phonebook::descriptor_of`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathHop {
    /// The node.
    pub node: NodeId,
    /// Where the hop before it reaches it: the first of its addresses.
    pub address: SocketAddr,
    /// Where the phonebook had the node when the path was chosen; a hint.
    pub(super) slot: usize,
}

/// 1 to 4 different nodes, from the first hop to the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    hops: Vec<PathHop, PATH_MAX>,
}

impl Path {
    /// The hops, the one that the client links to first.
    #[must_use]
    pub fn hops(&self) -> &[PathHop] {
        &self.hops
    }

    /// Whether `node` is on the path.
    #[must_use]
    pub fn contains(&self, node: &NodeId) -> bool {
        self.hops.iter().any(|hop| hop.node == *node)
    }
}

/// An entry that can be drawn.
#[derive(Clone, Copy)]
pub(super) struct Choice<'b> {
    slot: usize,
    entry: &'b Entry,
    address: SocketAddr,
}

impl<'b> Choice<'b> {
    pub(super) const fn node(&self) -> NodeId {
        self.entry.node()
    }

    const fn descriptor(&self) -> &'b Descriptor {
        self.entry.descriptor()
    }

    pub(super) fn group(&self) -> NetworkGroup {
        self.address.ip().into()
    }

    const fn hop(&self) -> PathHop {
        PathHop { node: self.node(), address: self.address, slot: self.slot }
    }
}

impl core::fmt::Debug for Choice<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&self.node(), f)
    }
}

/// One of `choices`, each with the same probability.
pub(super) fn draw<T, R: CryptoRng + ?Sized>(choices: impl Iterator<Item = T> + Clone, rng: &mut R) -> Option<T> {
    let count = u32::try_from(choices.clone().count()).ok().filter(|&count| count > 0)?;
    // Lemire's method: the high half of the product is uniform once the low halves that occur too often are redrawn.
    let surplus = count.wrapping_neg() % count;
    let index = loop {
        let product = u64::from(rng.next_u32()) * u64::from(count);
        if product as u32 >= surplus {
            break (product >> 32) as usize;
        }
    };
    let mut choices = choices;
    choices.nth(index)
}

/// The part that network groups play in one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Groups {
    Distinct,
    DistinctWherePossible,
    Any,
}

impl Phonebook<'_> {
    pub(super) fn choices(&self) -> impl Iterator<Item = Choice<'_>> + Clone {
        self.entries.iter().enumerate().filter_map(|(slot, entry)| {
            let entry = entry.as_ref()?;
            Some(Choice { slot, entry, address: *entry.descriptor().addresses.first()? })
        })
    }

    /// Draws a path. The first of several hops is one of `guards`, which are drawn and replaced as [`Guards`] says.
    ///
    /// # Errors
    /// [`PathError`], what is missing.
    pub fn choose_path<R: CryptoRng + ?Sized>(
        &self,
        request: &PathRequest<'_>,
        guards: &mut Guards,
        rng: &mut R,
    ) -> Result<Path, PathError> {
        let guards = if request.hops.value() > 1 { guards.usable(self, request, rng) } else { Vec::new() };
        match request.strictness {
            Strictness::Require => self.attempt(request, Groups::Distinct, &guards, rng),
            Strictness::Ignore => self.attempt(request, Groups::Any, &guards, rng),
            Strictness::Prefer => self
                .attempt(request, Groups::Distinct, &guards, rng)
                .or_else(|_| self.attempt(request, Groups::DistinctWherePossible, &guards, rng)),
        }
    }

    fn attempt<R: CryptoRng + ?Sized>(
        &self,
        request: &PathRequest<'_>,
        groups: Groups,
        guards: &[Choice<'_>],
        rng: &mut R,
    ) -> Result<Path, PathError> {
        let last_hops = self.choices().filter(|choice| request.can_be_last(choice));
        let relays = self.choices().filter(|choice| request.can_relay(choice));
        let needed = request.hops.value() - 1;

        if last_hops.clone().next().is_none() {
            return Err(match request.last {
                LastHop::Exit { port: Some(port) } if self.choices().any(|choice| choice.descriptor().roles.exit) => {
                    PathError::NoExitForPort(port)
                }
                LastHop::Node(_) => PathError::UnknownNode,
                LastHop::Exit { .. } | LastHop::Service => PathError::NoLastHop,
            });
        }

        // A last hop that is a relay itself is one relay less for the rest of the path.
        let relays_known = relays.clone().count();
        let besides = |last: &Choice<'_>| relays_known - usize::from(request.can_relay(last));
        let enough_relays = last_hops.clone().filter(|last| besides(last) >= needed);
        if enough_relays.clone().next().is_none() {
            let known = last_hops.map(|last| besides(&last)).max().unwrap_or(0);
            return Err(PathError::TooFewRelays { known, needed });
        }

        // Likewise with groups; beyond one more than the hops before the last, further groups change nothing.
        let mut relay_groups: Vec<NetworkGroup, PATH_MAX> = Vec::new();
        for relay in relays.clone() {
            if relay_groups.len() <= needed && !relay_groups.contains(&relay.group()) {
                relay_groups.push(relay.group()).expect("at most as many groups as hops");
            }
        }
        let groups_besides = |last: &Choice<'_>| relay_groups.len() - usize::from(relay_groups.contains(&last.group()));
        let must_differ = groups == Groups::Distinct;
        let enough_groups = enough_relays.clone().filter(|last| !must_differ || groups_besides(last) >= needed);
        if enough_groups.clone().next().is_none() {
            let known = enough_relays.map(|last| groups_besides(&last)).max().unwrap_or(0);
            return Err(PathError::TooFewGroups { known, needed });
        }

        let fits = |guard: &Choice<'_>, last: &Choice<'_>| {
            guard.node() != last.node() && !(must_differ && guard.group() == last.group())
        };
        let with_guard = enough_groups.filter(|last| needed == 0 || guards.iter().any(|guard| fits(guard, last)));
        // With two usable guards, which `Guards` sees to if there are two relays, only groups can stand in the way.
        let last = draw(with_guard, rng).ok_or(PathError::GuardsInGroup)?;

        let mut before_last: Vec<Choice<'_>, PATH_MAX> = Vec::new();
        for position in 0..needed {
            let taken =
                |choice: &Choice<'_>| before_last.iter().chain([&last]).any(|other| other.node() == choice.node());
            let group_taken =
                |choice: &Choice<'_>| before_last.iter().chain([&last]).any(|other| other.group() == choice.group());
            let mut pick = |differ: bool| {
                let allowed = |choice: &Choice<'_>| !(taken(choice) || differ && group_taken(choice));
                if position == 0 {
                    draw(guards.iter().copied().filter(allowed), rng)
                } else {
                    draw(relays.clone().filter(allowed), rng)
                }
            };
            let choice = match groups {
                Groups::Distinct => pick(true),
                Groups::DistinctWherePossible => pick(true).or_else(|| pick(false)),
                Groups::Any => pick(false),
            };
            let choice = choice.expect("the last hop was drawn among those that leave enough");
            before_last.push(choice).expect("a path has at most four hops");
        }
        Ok(Path { hops: before_last.iter().chain([&last]).map(Choice::hop).collect() })
    }

    /// Whether a path chosen earlier would still be allowed for `request`: the same number of hops, every node known at the
    /// same address, valid and not avoided, and the last hop suitable. Network groups are not looked at again.
    #[must_use]
    pub fn allows(&self, path: &Path, request: &PathRequest<'_>) -> bool {
        let Some((last, before_last)) = path.hops.split_last() else { return false };
        let choice = |hop: &PathHop| {
            let in_place = self.slot(hop.slot).filter(|entry| entry.node() == hop.node);
            let entry = in_place.or_else(|| self.get(&hop.node))?;
            let address = *entry.descriptor().addresses.first()?;
            (address == hop.address).then_some(Choice { slot: hop.slot, entry, address })
        };
        path.hops.len() == request.hops.value()
            && choice(last).is_some_and(|choice| request.can_be_last(&choice))
            && before_last.iter().all(|hop| choice(hop).is_some_and(|choice| request.can_relay(&choice)))
    }
}

#[cfg(test)]
mod tests;
