//! What tables are made of: who knows how much, what attackers hold, and what a path gives away.

use std::collections::{HashMap, HashSet};

use bulbil_core::phonebook::Entry;
use bulbil_core::wire::{NodeId, UnixTime};
use rand_core::Rng as _;

use super::{City, Trade};
use crate::fixture;
use crate::sim::NodeIndex;

/// What a node knows of those who are there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct View {
    /// Nodes that are there, itself left out.
    pub there: usize,
    /// Of these, known.
    pub known: usize,
    /// Of these, met.
    pub met: usize,
    /// Known, but gone.
    pub gone: usize,
    /// Known, but never there.
    pub invented: usize,
}

/// What attackers hold of somebody; shares of 1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Hold {
    /// Places of `tried` that are taken, and of these the attackers' share.
    pub tried: (f64, f64),
    /// The same of `new`, inventions counted as theirs.
    pub new: (f64, f64),
    /// Of the guards.
    pub guards: f64,
    /// Of paths, those with the first hop theirs.
    pub first: f64,
    /// With the last.
    pub last: f64,
    /// With both, so that they see who talks to whom.
    pub both: f64,
    /// 1 if one path at least had both ends theirs: sooner or later that is what counts.
    pub ever: f64,
    /// Paths that could be drawn at all.
    pub drawn: f64,
}

impl Hold {
    /// The mean of several.
    #[must_use]
    pub fn mean(all: &[Self]) -> Self {
        let count = all.len().max(1) as f64;
        let mean = |part: fn(&Self) -> f64| all.iter().map(part).sum::<f64>() / count;
        Self {
            tried: (mean(|hold| hold.tried.0), mean(|hold| hold.tried.1)),
            new: (mean(|hold| hold.new.0), mean(|hold| hold.new.1)),
            guards: mean(|hold| hold.guards),
            first: mean(|hold| hold.first),
            last: mean(|hold| hold.last),
            both: mean(|hold| hold.both),
            ever: mean(|hold| hold.ever),
            drawn: mean(|hold| hold.drawn),
        }
    }
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl City<'_, '_, '_> {
    /// What a node knows.
    #[must_use]
    pub fn view(&self, node: NodeIndex) -> View {
        self.view_of(node, &self.there())
    }

    /// The same, for somebody who asks about many nodes; `there` may hold the node itself.
    #[must_use]
    pub fn view_of(&self, node: NodeIndex, there: &HashSet<NodeId>) -> View {
        let citizen = self.citizen(node);
        let now = self.net.calendar(node);
        let mut view = View { there: there.len() - usize::from(there.contains(&citizen.id)), ..View::default() };
        for entry in citizen.book().iter().filter(|entry| entry.is_valid_at(now)) {
            if there.contains(&entry.node()) {
                view.known += 1;
                view.met += usize::from(entry.is_tried());
            } else if self.names().contains_key(&entry.node()) {
                view.gone += 1;
            } else {
                view.invented += 1;
            }
        }
        view
    }

    /// The names of those who are there and answer links.
    #[must_use]
    pub fn there(&self) -> HashSet<NodeId> {
        self.living().filter(|citizen| citizen.card().is_some()).map(|citizen| citizen.id).collect()
    }

    /// The time by a clock that is right.
    #[must_use]
    pub fn true_time(&self) -> UnixTime {
        UnixTime(fixture::EPOCH.0 + self.now().as_secs())
    }

    /// Of the nodes that a node has met, those that are gone.
    #[must_use]
    pub fn gone_of_met(&self, node: NodeIndex, there: &HashSet<NodeId>) -> usize {
        let met = self.citizen(node).book().iter().filter(|entry| entry.is_tried());
        met.filter(|entry| !there.contains(&entry.node())).count()
    }

    /// Forgets descriptors that nobody holds any more.
    pub fn tidy(&mut self) {
        self.registry.tidy();
    }

    /// Who there is or was. An invention is not among them.
    #[must_use]
    pub fn names(&self) -> &HashMap<NodeId, NodeIndex> {
        &self.names
    }

    /// Whether a node is an attacker's, or his invention.
    fn is_foul(&self, node: &NodeId) -> bool {
        self.names().get(node).is_none_or(|&node| self.citizens[node].trade != Trade::Honest)
    }

    /// What attackers hold of a node, `paths` paths drawn.
    pub fn hold(&mut self, node: NodeIndex, paths: usize) -> Hold {
        let mut hold = Hold::default();
        let shelves = [true, false].map(|tried| {
            let entries = self.citizens[node].book().iter().filter(|entry| entry.is_tried() == tried);
            let nodes: Vec<NodeId> = entries.map(Entry::node).collect();
            let foul = nodes.iter().filter(|node| self.is_foul(node)).count();
            (nodes.len() as f64, share(foul, nodes.len()))
        });
        [hold.tried, hold.new] = shelves;
        let drawn: Vec<Vec<NodeId>> = (0..paths)
            .filter_map(|_| self.draw_path(node, &[]))
            .map(|hops| hops.iter().map(|hop| hop.node).collect())
            .collect();
        let guards = self.citizens[node].steward.guards().nodes();
        let foul = guards.iter().filter(|node| self.is_foul(node)).count();
        hold.guards = share(foul, guards.len());
        let count = |is: &dyn Fn(&[NodeId]) -> bool| share(drawn.iter().filter(|path| is(path)).count(), drawn.len());
        let first = |path: &[NodeId]| path.first().is_some_and(|node| self.is_foul(node));
        let last = |path: &[NodeId]| path.last().is_some_and(|node| self.is_foul(node));
        hold.first = count(&first);
        hold.last = count(&last);
        hold.both = count(&|path| first(path) && last(path));
        hold.ever = f64::from(u8::from(hold.both > 0.0));
        hold.drawn = share(drawn.len(), paths);
        hold
    }

    /// A path that the node would use now; empty if there is none.
    pub fn path(&mut self, node: NodeIndex) -> Vec<NodeId> {
        let hops = self.draw_path(node, &[]).unwrap_or_default();
        hops.iter().map(|hop| hop.node).collect()
    }

    /// Sets a node's clock wrong by so many seconds.
    pub fn set_clock(&mut self, node: NodeIndex, ahead: i64) {
        self.net.set_ahead(node, ahead);
    }

    /// The node draws new guards when it next needs them.
    pub fn forget_guards(&mut self, node: NodeIndex) {
        self.citizens[node].steward.forget_guards();
    }
}

/// How much a set of nodes seen on paths tells about who chose them (Danezis and Clayton, "Bridging and Fingerprinting: Epistemic Attacks on
/// Route Selection", 2008): of `views.len()` users, only those whose view holds all of the nodes that were seen can have chosen them.
/// The answer is the mean of `log2(users / users who can have)` over `rounds` draws of `seen` nodes from a random user's view: 0 tells
/// nothing, `log2(users)` everything.
///
/// `views` says for each user whom it knows, as numbers of nodes. If every user keeps a random part k of N nodes, then this is about
/// `min(log2(users), seen x log2(N / k))`.
pub fn bits_given_away(views: &[HashSet<u32>], seen: usize, rounds: usize, rng: &mut rand_chacha::ChaCha20Rng) -> f64 {
    let ordered: Vec<Vec<u32>> = views
        .iter()
        .map(|view| {
            let mut view: Vec<u32> = view.iter().copied().collect();
            view.sort_unstable();
            view
        })
        .collect();
    let mut sum = 0.0;
    let mut drawn = 0;
    for _ in 0..rounds {
        let own = &ordered[rng.next_u64() as usize % views.len()];
        if own.len() < seen {
            continue;
        }
        let mut nodes = Vec::new();
        while nodes.len() < seen {
            let node = own[rng.next_u64() as usize % own.len()];
            if !nodes.contains(&node) {
                nodes.push(node);
            }
        }
        let possible = views.iter().filter(|view| nodes.iter().all(|node| view.contains(node))).count();
        sum += (views.len() as f64 / possible as f64).log2();
        drawn += 1;
    }
    if drawn == 0 { 0.0 } else { sum / f64::from(drawn) }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    use super::*;

    #[test]
    fn equal_views_tell_nothing_and_random_parts_what_the_formula_says() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let full: HashSet<u32> = (0..400).collect();
        let views = vec![full; 200];
        assert!(bits_given_away(&views, 3, 50, &mut rng).abs() < 1e-9);
        let parts: Vec<HashSet<u32>> = (0..1024)
            .map(|_| {
                let mut part = HashSet::new();
                while part.len() < 100 {
                    part.insert((rng.next_u64() % 400) as u32);
                }
                part
            })
            .collect();
        // log2(400 / 100) = 2 bits a node seen.
        let bits = bits_given_away(&parts, 2, 400, &mut rng);
        assert!((3.8..4.2).contains(&bits), "{bits}");
        let all = bits_given_away(&parts, 20, 100, &mut rng);
        assert!((9.9..10.01).contains(&all), "one of 1024: {all}");
    }
}
