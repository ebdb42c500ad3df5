//! What must be the same on every machine: given the same seeds, the same bytes. The build script works these digests out on the machine
//! that builds, whose core the outside vectors have passed; byte order and the size of a word must not show in them.
//!
//! Also part of the build script.

use bulbil_core::crypto::cgo::{ClientBackward, ClientForward, HopIndex, RelayBackward, RelayForward, Seed};
use bulbil_core::crypto::identity::IdentitySecret;
use bulbil_core::crypto::kem::OnionSecret;
use bulbil_core::crypto::onion::{HopSpec, ONION_LEN, build};
use bulbil_core::crypto::replay::{ReplaySet, ReplayTag};
use bulbil_core::link::noise::{MESSAGE1_LEN, MESSAGE2_OVERHEAD, answer};
use bulbil_core::link::record::{cells_offset, record_len};
use bulbil_core::link::{Connector, LinkSecret, PortableAead, RecordKey, RecordLimit, Sealer};
use bulbil_core::phonebook::Epoch;
use bulbil_core::wire::cell::{BODY_LEN, CellBody};
use bulbil_core::wire::{Command, NodeId, OnionKeyKind, UnixTime};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

pub(crate) const COUNT: usize = 6;

pub(crate) fn digests() -> [(&'static str, [u8; 32]); COUNT] {
    [
        ("a link's handshake", handshake()),
        ("a link's records", records()),
        ("an onion of both kinds of key", onion()),
        ("relay cells through four hops", relay_cells()),
        ("an RSA-PSS signature", signature()),
        ("replay sets and epoch ranks", tables()),
    ]
}

fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

fn handshake() -> [u8; 32] {
    let (mut message1, mut message2) = ([0; MESSAGE1_LEN], [0; MESSAGE2_OVERHEAD + 7]);
    let connector = Connector::start(&mut rng(1), &mut message1);
    let secret = LinkSecret::from_bytes([7; 32]);
    let (_len, theirs) = answer(&secret, &message1, b"payload", &mut message2, &mut rng(2)).expect("an honest message");
    let digest = Sha256::new().chain_update(message1).chain_update(message2);
    let ours = connector.finish(&mut message2).expect("an honest answer");
    let keys = [&theirs.send, &theirs.receive, &ours.keys.send, &ours.keys.receive];
    keys.iter().fold(digest, |digest, key| digest.chain_update(key.as_bytes())).finalize().into()
}

fn records() -> [u8; 32] {
    let limit = RecordLimit::new(8).expect("1 to 127");
    let mut sealer = Sealer::<PortableAead>::new(&RecordKey::new([3; 32]), limit);
    let mut digest = Sha256::new();
    let mut buffer = [0; record_len(8)];
    for cells in [1, 8, 3] {
        rng(cells as u64).fill_bytes(&mut buffer[cells_offset()..]);
        let len = sealer.seal(&mut buffer, cells).expect("room for eight cells");
        digest.update(&buffer[..len]);
    }
    digest.finalize().into()
}

fn onion() -> [u8; 32] {
    let rsa = include_bytes!("../../tests/vectors/rsa/test-key-2.der");
    let rsa = OnionSecret::import(OnionKeyKind::Rsa2048, rsa).expect("a test key");
    let x_wing = OnionSecret::generate(OnionKeyKind::XWing, &mut rng(3));
    let keys = [x_wing.public(), rsa.public()];
    let path = [0, 1, 0, 1].map(|at: u8| HopSpec {
        node: NodeId([at; 32]),
        key: &keys[usize::from(at)],
        address: ([192, 0, 2, 1 + at], 9000).into(),
    });
    let mut onion = [0; ONION_LEN];
    let keys = build(&path, &mut onion, &mut rng(4)).expect("a path of four hops");
    let digest = Sha256::new().chain_update(onion);
    let digest = keys.iter().fold(digest, |digest, key| digest.chain_update(*key.forward).chain_update(*key.backward));
    digest.finalize().into()
}

fn relay_cells() -> [u8; 32] {
    let mut rng = rng(5);
    let seeds = [(); 4].map(|()| {
        let mut bytes = [0; 80];
        rng.fill_bytes(&mut bytes);
        Seed::from_bytes(bytes)
    });
    let mut client = ClientForward::new(&seeds).expect("a path of four hops");
    let mut hops = seeds.each_ref().map(RelayForward::new);
    let mut listener = ClientBackward::new(&seeds).expect("a path of four hops");
    let mut speakers = seeds.each_ref().map(RelayBackward::new);
    let mut digest = Sha256::new();
    let mut body: CellBody = [0; BODY_LEN];
    for to in [3, 3, 1, 0, 2, 3] {
        rng.fill_bytes(&mut body);
        let hop = HopIndex::new(to).expect("a hop of the path");
        client.originate(hop, Command::RELAY, &mut body).expect("a hop of the path");
        digest.update(body);
        for hop in &mut hops {
            let own = hop.receive(Command::RELAY, &mut body);
            digest.update(body);
            digest.update([u8::from(own)]);
            if own {
                break;
            }
        }

        rng.fill_bytes(&mut body);
        speakers[to].originate(Command::RELAY, &mut body);
        for hop in speakers[..to].iter_mut().rev() {
            hop.pass(Command::RELAY, &mut body);
        }
        digest.update(body);
        let from = listener.receive(Command::RELAY, &mut body);
        digest.update([from.map_or(9, HopIndex::value) as u8]);
        digest.update(body);
    }
    digest.finalize().into()
}

fn signature() -> [u8; 32] {
    let identity = include_bytes!("../../tests/vectors/rsa/test-key-0.der");
    let identity = IdentitySecret::from_pkcs8(identity).expect("a test key");
    let signature = identity.sign(&mut rng(6), &[b"parts ", b"of a text"]).expect("a sound key");
    Sha256::new().chain_update(signature).chain_update(identity.node_id().0).finalize().into()
}

/// Tables of words, keyed: where machines differ most, and where nobody else would notice.
fn tables() -> [u8; 32] {
    let mut slots = [0; 64];
    let mut set = ReplaySet::new(&mut slots, &mut rng(7));
    let mut rng = rng(8);
    let mut digest = Sha256::new();
    for _ in 0..60 {
        let tag = ReplayTag::from_bytes(rng.next_u64().to_be_bytes());
        digest.update([u8::from(set.insert(tag).is_ok()), u8::from(set.insert(tag).is_ok())]);
    }
    set.tags().for_each(|tag| digest.update(tag.to_bytes()));
    digest.update(Epoch::at(UnixTime(1_700_000_000)).rank(&NodeId([7; 32])));
    digest.finalize().into()
}
