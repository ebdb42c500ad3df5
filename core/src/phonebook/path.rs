//! Choosing paths, `PROTOCOL.md` section 11.
//!
//! The last hop is drawn first, because fewest nodes can take that place, then the first hop from the guards, then the
//! relays between them: each uniformly among the nodes that are allowed there. Nodes that would leave too few relays
//! for the rest are not allowed as last hop, so a draw never ends in a blind alley.
//!
//! Nodes that were only heard of are drawn as long as too few were met (section 18.7), and for a hop for which nobody else is left; on a
//! constrained node never.

use core::borrow::Borrow;
use core::net::SocketAddr;

use heapless::Vec;
use rand_core::CryptoRng;

use super::entry::{Entry, Flag};
use super::shelves::Slot;
use super::{Guards, NetworkGroup, Phonebook, VerifiedDescriptor};
use crate::wire::{NodeId, Target, UnixTime};

/// Most hops on a path.
pub const PATH_MAX: usize = 4;
/// Usable relays that must have been met, so that others are not drawn.
pub const TRIED_RELAYS_MIN: usize = 8;
/// Usable last hops that must have been met, so that others are not drawn; of a certain node that one.
pub const TRIED_LAST_MIN: usize = 2;

/// Random places that are looked at before all are.
const BLIND_DRAWS: u8 = 32;

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
    /// Nodes that must not be on the path, such as hops that have just failed; a guard only as long as there is another one ([`Guards`]).
    pub avoid: &'a [NodeId],
    /// The time, for the validity of descriptors.
    pub now: UnixTime,
    /// Whether guards may be drawn beyond those in use: not by a node that may be cut off from all but those who want to be drawn.
    pub draw_guards: bool,
}

impl PathRequest<'_> {
    /// A path of the default length that ends at `last`.
    #[must_use]
    pub fn new(last: LastHop, now: UnixTime) -> Self {
        let (hops, strictness) = (HopCount::default(), Strictness::default());
        Self { hops, last, strictness, avoid: &[], now, draw_guards: true }
    }

    fn can_be_hop<C: Borrow<VerifiedDescriptor>>(&self, choice: &Choice<'_, C>) -> bool {
        choice.entry.is_usable() && choice.entry.is_valid_at(self.now) && !choice.is_one_of(self.avoid)
    }

    pub(super) fn can_relay<C: Borrow<VerifiedDescriptor>>(&self, choice: &Choice<'_, C>) -> bool {
        choice.entry.has(Flag::Relay) && self.can_be_hop(choice)
    }

    fn can_be_last<C: Borrow<VerifiedDescriptor>>(&self, choice: &Choice<'_, C>) -> bool {
        let entry = choice.entry;
        let may_be = match self.last {
            LastHop::Exit { .. } => entry.has(Flag::Exit),
            LastHop::Service => entry.has(Flag::Relay) || entry.has(Flag::Exit),
            LastHop::Node(node) => entry.is(&node),
        };
        // The ports come last, because only the descriptor has them.
        may_be
            && self.can_be_hop(choice)
            && match self.last {
                LastHop::Exit { port: Some(port) } => entry.descriptor().accepts_port(port),
                LastHop::Exit { port: None } | LastHop::Service | LastHop::Node(_) => true,
            }
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
        /// Usable relays besides the last hop; 0 if there is none that may be the first.
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
    /// Every guard is in the network group of every possible last hop, and no other may be drawn.
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
    pub(super) slot: Slot,
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
pub(super) struct Choice<'b, C> {
    slot: Slot,
    entry: &'b Entry<C>,
}

impl<C> Clone for Choice<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Choice<'_, C> {}

impl<'b, C: Borrow<VerifiedDescriptor>> Choice<'b, C> {
    pub(super) fn node(&self) -> NodeId {
        self.entry.node()
    }

    fn is_in(&self, scope: Scope) -> bool {
        scope == Scope::All || self.entry.is_tried()
    }

    fn is(&self, other: &Self) -> bool {
        self.slot == other.slot
    }

    pub(super) const fn group(&self) -> NetworkGroup {
        self.entry.group()
    }

    pub(super) fn is_one_of(&self, nodes: &[NodeId]) -> bool {
        nodes.iter().any(|node| self.entry.is(node))
    }

    fn hop(&self) -> PathHop {
        PathHop { node: self.node(), address: self.entry.address(), slot: self.slot }
    }
}

impl<C: Borrow<VerifiedDescriptor>> core::fmt::Debug for Choice<'_, C> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&self.node(), f)
    }
}

/// Which entries can be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Those that this node has met.
    Tried,
    All,
}

/// A number below `count`, each with the same probability; 0 if `count` is 0.
pub(super) fn below<R: CryptoRng + ?Sized>(count: u32, rng: &mut R) -> u32 {
    // Lemire's method: the high half of the product is uniform once the low halves that occur too often are redrawn.
    let Some(surplus) = count.wrapping_neg().checked_rem(count) else { return 0 };
    loop {
        let product = u64::from(rng.next_u32()) * u64::from(count);
        if product as u32 >= surplus {
            break (product >> 32) as u32;
        }
    }
}

/// One of `choices`, each with the same probability.
pub(super) fn draw<T, R: CryptoRng + ?Sized>(choices: impl Iterator<Item = T> + Clone, rng: &mut R) -> Option<T> {
    let count = u32::try_from(choices.clone().count()).ok().filter(|&count| count > 0)?;
    let mut choices = choices;
    choices.nth(below(count, rng) as usize)
}

/// The part that network groups play in one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Groups {
    Distinct,
    DistinctWherePossible,
    Any,
}

/// From where relays and last hops are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scopes {
    pub(super) relays: Scope,
    last: Scope,
    /// From all, for a hop for which these have nobody. (Not the first: guards are drawn beforehand.)
    widened: bool,
}

impl Scopes {
    /// Where somebody is in the end looked for, in place of `scope`.
    const fn reach(self, scope: Scope) -> Scope {
        if self.widened { Scope::All } else { scope }
    }
}

impl<C: Borrow<VerifiedDescriptor> + Clone> Phonebook<'_, C> {
    fn choices(&self, scope: Scope) -> impl Iterator<Item = Choice<'_, C>> + Clone {
        let places = self.places_in(scope);
        let choices = self.slots().take_while(move |(slot, _)| usize::from(slot.0) < places);
        choices.map(|(slot, entry)| Choice { slot, entry }).filter(move |choice| choice.is_in(scope))
    }

    /// The places that hold all of `scope`, from the first on.
    const fn places_in(&self, scope: Scope) -> usize {
        match scope {
            Scope::Tried if !self.is_constrained() => self.shelves.tried.len(),
            Scope::Tried | Scope::All => self.places(),
        }
    }

    fn choice(&self, slot: Slot) -> Option<Choice<'_, C>> {
        self.entry(slot).map(|entry| Choice { slot, entry })
    }

    pub(super) fn choice_of(&self, node: &NodeId) -> Option<Choice<'_, C>> {
        self.choice(self.find(node)?)
    }

    /// One of those in `scope` that are allowed, each with the same probability.
    pub(super) fn draw_choice<R: CryptoRng + ?Sized>(
        &self,
        scope: Scope,
        allowed: impl Fn(&Choice<'_, C>) -> bool,
        rng: &mut R,
    ) -> Option<Choice<'_, C>> {
        // Where many are allowed a random place soon holds one of them; only where few are it pays to look at all.
        let places = self.places_in(scope) as u32;
        let at_random = (0..BLIND_DRAWS).find_map(|_| {
            let choice = self.choice(Slot(below(places, rng) as u16))?;
            (choice.is_in(scope) && allowed(&choice)).then_some(choice)
        });
        at_random.or_else(|| draw(self.choices(scope).filter(&allowed), rng))
    }

    /// From where to draw for `request`: only from nodes that were met if there are enough of them (section 18.7).
    pub(super) fn scopes(&self, request: &PathRequest<'_>) -> Scopes {
        if self.is_constrained() {
            return Scopes { relays: Scope::Tried, last: Scope::Tried, widened: false };
        }
        let scope = |enough: bool| if enough { Scope::Tried } else { Scope::All };
        let relays = self.choices(Scope::Tried).filter(|choice| request.can_relay(choice));
        let last = self.choices(Scope::Tried).filter(|choice| request.can_be_last(choice));
        let last_min = if matches!(request.last, LastHop::Node(_)) { 1 } else { TRIED_LAST_MIN };
        Scopes {
            relays: scope(relays.take(TRIED_RELAYS_MIN).count() == TRIED_RELAYS_MIN),
            last: scope(last.take(last_min).count() == last_min),
            widened: false,
        }
    }

    /// From where to draw first hops. Whoever has met enough relays takes no others, not even when few of these can be used now: after a time
    /// without connection all may have expired, and then the first to tell of others would have the choice.
    fn first_hops(&self, scopes: Scopes) -> Scope {
        let met = self.choices(Scope::Tried).filter(|choice| choice.entry.has(Flag::Relay) && choice.entry.is_usable());
        if met.take(TRIED_RELAYS_MIN).count() == TRIED_RELAYS_MIN { Scope::Tried } else { scopes.relays }
    }

    /// One of those in `scope` that are allowed, or if that has none and `scopes` are widened, of all; each with the same probability.
    fn draw_within<R: CryptoRng + ?Sized>(
        &self,
        scopes: Scopes,
        scope: Scope,
        allowed: impl Fn(&Choice<'_, C>) -> bool,
        rng: &mut R,
    ) -> Option<Choice<'_, C>> {
        let narrow = self.draw_choice(scope, &allowed, rng);
        narrow.or_else(|| if scopes.widened { self.draw_choice(Scope::All, allowed, rng) } else { None })
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
        let scopes = self.scopes(request);
        if request.hops.value() == 1 {
            return self.attempts(request, scopes, &[], |_| None, rng);
        }
        let first = self.first_hops(scopes);
        let usable = guards.usable(self, request, first, rng);
        let result =
            self.attempts(request, scopes, &usable, |rng| guards.apart(self, request, &usable, first, rng), rng);
        if result.is_ok() || guards.may_draw(request) {
            return result;
        }
        // Whoever can make guards fail would otherwise be drawn in the end.
        let again = guards.despite_all(self, request);
        self.attempts(request, scopes, &again, |_| None, rng).or(result)
    }

    /// Draws a path that begins with one of `guards`; with the one `apart` from them if they are all in the group of every possible last hop.
    fn attempts<'b, R: CryptoRng + ?Sized>(
        &'b self,
        request: &PathRequest<'_>,
        scopes: Scopes,
        guards: &[Choice<'b, C>],
        apart: impl FnOnce(&mut R) -> Option<Choice<'b, C>>,
        rng: &mut R,
    ) -> Result<Path, PathError> {
        let narrow = scopes.relays == Scope::Tried || scopes.last == Scope::Tried;
        let widened = (!self.is_constrained() && narrow).then_some(Scopes { widened: true, ..scopes });
        let within = |groups, guards: &[Choice<'_, C>], rng: &mut R| {
            let result = self.attempt(request, groups, scopes, guards, rng);
            widened
                .filter(|_| result.is_err())
                .map_or(result, |scopes| self.attempt(request, groups, scopes, guards, rng))
        };
        if request.strictness == Strictness::Ignore {
            return within(Groups::Any, guards, rng);
        }
        // Different groups count for more than having met: hops of one group may all be one owner's, and to have met somebody says only
        // that it answers.
        let mut result = within(Groups::Distinct, guards, rng);
        // One owner at both ends sees who talks to whom. One guard more, that stays, is less of a risk.
        if result == Err(PathError::GuardsInGroup)
            && let Some(other) = apart(rng)
        {
            result = within(Groups::Distinct, &[other], rng);
        }
        if result.is_err() && request.strictness == Strictness::Prefer {
            result = within(Groups::DistinctWherePossible, guards, rng);
        }
        result
    }

    fn attempt<R: CryptoRng + ?Sized>(
        &self,
        request: &PathRequest<'_>,
        groups: Groups,
        scopes: Scopes,
        guards: &[Choice<'_, C>],
        rng: &mut R,
    ) -> Result<Path, PathError> {
        let (all_last, all_relays) = (scopes.reach(scopes.last), scopes.reach(scopes.relays));
        let last_hops = self.choices(all_last).filter(|choice| request.can_be_last(choice));
        let can_relay = |choice: &Choice<'_, C>| choice.is_in(all_relays) && request.can_relay(choice);
        let needed = request.hops.value() - 1;
        let must_differ = groups == Groups::Distinct;

        if last_hops.clone().next().is_none() {
            let mut any = self.choices(all_last);
            return Err(match request.last {
                LastHop::Exit { port: Some(port) } if any.any(|choice| choice.entry.has(Flag::Exit)) => {
                    PathError::NoExitForPort(port)
                }
                LastHop::Node(_) => PathError::UnknownNode,
                LastHop::Exit { .. } | LastHop::Service => PathError::NoLastHop,
            });
        }

        // Beyond one more than the hops before the last, further relays and groups change nothing.
        let mut relays_known = 0;
        let mut relay_groups: Vec<NetworkGroup, PATH_MAX> = Vec::new();
        for relay in self.choices(all_relays).filter(|choice| request.can_relay(choice)) {
            relays_known += 1;
            if relay_groups.len() <= needed && !relay_groups.contains(&relay.group()) {
                relay_groups.push(relay.group()).expect("at most as many groups as hops");
            }
            if relays_known > needed && (relay_groups.len() > needed || !must_differ) {
                break;
            }
        }
        // A last hop that is a relay itself is one relay less for the rest of the path.
        let besides = |last: &Choice<'_, C>| relays_known - usize::from(can_relay(last));
        let enough_relays = last_hops.clone().filter(|last| besides(last) >= needed);
        if enough_relays.clone().next().is_none() {
            let known = last_hops.map(|last| besides(&last)).max().unwrap_or(0);
            return Err(PathError::TooFewRelays { known, needed });
        }

        // Likewise with groups.
        let groups_besides =
            |last: &Choice<'_, C>| relay_groups.len() - usize::from(relay_groups.contains(&last.group()));
        let enough_groups = |last: &Choice<'_, C>| !must_differ || groups_besides(last) >= needed;
        if !enough_relays.clone().any(|last| enough_groups(&last)) {
            let known = enough_relays.map(|last| groups_besides(&last)).max().unwrap_or(0);
            return Err(PathError::TooFewGroups { known, needed });
        }

        if needed > 0 && guards.is_empty() {
            return Err(PathError::TooFewRelays { known: 0, needed });
        }
        let fits = |guard: &Choice<'_, C>, last: &Choice<'_, C>| {
            !(guard.is(last) || must_differ && guard.group() == last.group())
        };
        let with_guard = |last: &Choice<'_, C>| {
            request.can_be_last(last)
                && besides(last) >= needed
                && enough_groups(last)
                && (needed == 0 || guards.iter().any(|guard| fits(guard, last)))
        };
        // With two usable guards, which `Guards` sees to if there are two relays, only groups can stand in the way.
        let last = self.draw_within(scopes, scopes.last, with_guard, rng).ok_or(PathError::GuardsInGroup)?;

        let mut before_last: Vec<Choice<'_, C>, PATH_MAX> = Vec::new();
        for position in 0..needed {
            let chosen = || before_last.iter().chain([&last]);
            let taken = |choice: &Choice<'_, C>| chosen().any(|other| other.is(choice));
            let group_taken = |choice: &Choice<'_, C>| chosen().any(|other| other.group() == choice.group());
            let mut pick = |differ: bool| {
                let allowed = |choice: &Choice<'_, C>| !(taken(choice) || differ && group_taken(choice));
                if position == 0 {
                    draw(guards.iter().copied().filter(allowed), rng)
                } else {
                    let allowed = |choice: &Choice<'_, C>| request.can_relay(choice) && allowed(choice);
                    self.draw_within(scopes, scopes.relays, allowed, rng)
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
    /// same address, valid, not avoided and not in dispute, and the last hop suitable. Network groups are not looked at again.
    #[must_use]
    pub fn allows(&self, path: &Path, request: &PathRequest<'_>) -> bool {
        let Some((last, before_last)) = path.hops.split_last() else { return false };
        let choice = |hop: &PathHop| {
            let entry = self.entry_of(hop)?;
            (entry.address() == hop.address).then_some(Choice { slot: hop.slot, entry })
        };
        path.hops.len() == request.hops.value()
            && choice(last).is_some_and(|choice| request.can_be_last(&choice))
            && before_last.iter().all(|hop| choice(hop).is_some_and(|choice| request.can_relay(&choice)))
    }
}

#[cfg(test)]
mod tests;
