//! How much a partial view gives away about its owner.

use std::collections::{HashMap, HashSet};

use bulbil_core::wire::NodeId;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng};

use super::Print;
use crate::metropolis::{City, bits_given_away};

/// Nodes in a part.
const PART: usize = 64;
/// Nodes of a user that somebody has seen: one, those of a path behind the guard, of four paths, of sixteen.
const SEEN: [usize; 4] = [1, 3, 12, 48];
/// Draws behind each number.
const ROUNDS: usize = 400;

/// Whom each user knows.
#[derive(Debug, Clone, Default)]
pub struct Views {
    /// Nodes that there are.
    pub nodes: usize,
    /// Everything that was met.
    pub full: Vec<HashSet<u32>>,
    /// The epoch's sample of what was met.
    pub epoch: Vec<HashSet<u32>>,
}

/// The views that living nodes have now, if each were a user.
#[must_use]
pub fn views(city: &City<'_, '_, '_>) -> Views {
    let numbers: HashMap<NodeId, u32> =
        city.citizens().iter().map(|citizen| (citizen.id, citizen.node as u32)).collect();
    let number = |node: NodeId| numbers.get(&node).copied();
    let mut views = Views { nodes: city.living().count(), ..Views::default() };
    for citizen in city.living() {
        let now = city.true_time();
        let met = citizen.book().iter().filter(|entry| entry.is_tried() && entry.is_valid_at(now));
        views.full.push(met.filter_map(|entry| number(entry.node())).collect());
        let sample = citizen.book().epoch_sample(PART, now);
        views.epoch.push(sample.filter_map(|card| number(card.node())).collect());
    }
    views
}

/// The table.
pub fn table(seed: u64, what: &str, views: &Views, print: Print<'_>) {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let random: Vec<HashSet<u32>> = views
        .full
        .iter()
        .map(|full| {
            let mut all: Vec<u32> = full.iter().copied().collect();
            all.sort_unstable();
            let mut part = HashSet::new();
            while part.len() < PART.min(all.len()) {
                part.insert(all[rng.next_u64() as usize % all.len()]);
            }
            part
        })
        .collect();
    let most = (views.full.len() as f64).log2();
    let mut row = |name: String, part: &[HashSet<u32>]| {
        let bits = SEEN.map(|seen| format!("{:.2}", bits_given_away(part, seen, ROUNDS, &mut rng)));
        print(&format!("| {what} | {name} | {} |", bits.join(" | ")));
    };
    row(format!("random part, {PART} nodes"), &random);
    row(format!("epoch sample, {PART} nodes"), &views.epoch);
    row("full view".to_owned(), &views.full);
    let formula = SEEN.map(|seen| {
        let bits = seen as f64 * (views.nodes as f64 / PART as f64).log2();
        format!("{:.2}", bits.min(most))
    });
    print(&format!("| {what} | random part, by the formula | {} |", formula.join(" | ")));
}

/// The table's head.
pub fn head(print: Print<'_>) {
    let seen = SEEN.map(|seen| format!("{seen} seen"));
    print(&format!("| network | view | {} |", seen.join(" | ")));
    print(&format!("| --- | --- |{}", " --- |".repeat(SEEN.len())));
}
