//! Where nodes are: addresses in network groups of very different size, as on a real network.

use std::net::{Ipv4Addr, SocketAddr};

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng};

/// Network groups (IPv4 /16) that honest nodes are spread over.
const GROUPS: u64 = 1_500;
/// The k-th group is drawn with a weight of 1 / (k + 3): the largest one has 5 % of all nodes, the ten largest 29 %, and of 2,000 nodes about
/// 650 are alone in theirs or with one other. A few large hosting companies and many homes.
const FLATTENING: u64 = 3;
/// Groups of attackers begin here, so that they share none with honest nodes.
const FIRST_OF_ATTACKERS: u64 = 3_000;
/// Every node listens here.
const PORT: u16 = 9_000;

/// Gives out addresses, none twice.
pub struct Geography {
    rng: ChaCha8Rng,
    /// Nodes in each group so far.
    used: Vec<u16>,
    rented: usize,
}

impl Geography {
    /// All addresses free.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed ^ 0x6765_6f67), used: vec![0; GROUPS as usize], rented: 0 }
    }

    /// An address for an honest node.
    pub fn settle(&mut self) -> SocketAddr {
        let weight = |group: u64| 1_000_000 / (group + FLATTENING);
        let sum: u64 = (0..GROUPS).map(weight).sum();
        let mut left = self.rng.next_u64() % sum;
        let mut group = 0;
        while left >= weight(group) {
            left -= weight(group);
            group += 1;
        }
        self.used[group as usize] += 1;
        address(group, self.used[group as usize])
    }

    /// A port at one of `addresses` IP addresses in `groups` groups that the attacker has, in turn.
    pub fn rent(&mut self, addresses: usize, groups: usize) -> SocketAddr {
        self.rented += 1;
        rented(self.rented - 1, addresses, groups)
    }
}

/// The attacker's node with this number, at one of `addresses` IP addresses in `groups` groups.
#[must_use]
pub(super) fn rented(number: usize, addresses: usize, groups: usize) -> SocketAddr {
    let (at, port) = (number % addresses, PORT + (number / addresses) as u16);
    let mut address = address(FIRST_OF_ATTACKERS + (at % groups) as u64, (at / groups) as u16 + 1);
    address.set_port(port);
    address
}

/// A host in a group. The first byte is neither that of a private nor of a special network.
fn address(group: u64, host: u16) -> SocketAddr {
    let [host_high, host_low] = host.to_be_bytes();
    let ip = Ipv4Addr::new(20 + (group / 256) as u8, (group % 256) as u8, host_high, host_low);
    SocketAddr::from((ip, PORT))
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use bulbil_core::phonebook::NetworkGroup;

    use super::*;

    #[test]
    fn groups_are_as_uneven_as_the_docs_say() {
        let mut geography = Geography::new(1);
        let addresses: Vec<_> = (0..2_000).map(|_| geography.settle()).collect();
        assert_eq!(addresses.iter().collect::<HashSet<_>>().len(), addresses.len());
        let mut sizes: HashMap<NetworkGroup, usize> = HashMap::new();
        addresses.iter().for_each(|address| *sizes.entry(address.ip().into()).or_default() += 1);
        let mut sizes: Vec<_> = sizes.into_values().collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        assert!((80..140).contains(&sizes[0]), "{}", sizes[0]);
        let ten: usize = sizes[..10].iter().sum();
        assert!((500..660).contains(&ten), "{ten}");
        let few: usize = sizes.iter().filter(|&&size| size <= 2).sum();
        assert!((500..800).contains(&few), "{few}");
    }

    #[test]
    fn attackers_have_as_many_groups_as_they_pay_for() {
        let mut geography = Geography::new(1);
        let rented: Vec<_> = (0..100).map(|_| geography.rent(20, 7)).collect();
        assert_eq!(rented.iter().collect::<HashSet<_>>().len(), 100);
        assert_eq!(rented.iter().map(SocketAddr::ip).collect::<HashSet<_>>().len(), 20);
        let groups: HashSet<NetworkGroup> = rented.iter().map(|address| address.ip().into()).collect();
        assert_eq!(groups.len(), 7);
        let honest: HashSet<NetworkGroup> = (0..2_000).map(|_| geography.settle().ip().into()).collect();
        assert!(groups.is_disjoint(&honest));
    }
}
