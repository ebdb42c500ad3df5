//! An exchange that this node has begun.

use std::time::Duration;

use bulbil_core::node::Outcome;
use bulbil_core::phonebook::exchange::{
    AnswerReader, Exchanged, Filter, FilterBuilder, REQUEST_MAX_LEN, Refused, Request, Salt, SampleKind, Want,
    filter_len,
};
use bulbil_core::phonebook::{DescriptorError, HopCount, LastHop, PathError, VerifiedDescriptor};
use bulbil_core::wire::message::BeginOptions;
use bulbil_core::wire::{Descriptor, NodeId, Service, Target};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::{Instant, timeout_at};

use crate::control::book::Taken;
use crate::engine::Command;
use crate::node::Node;
use crate::node::directory::{ChosenHop, HopInfo, Teller, Wanted};
use crate::node::open::{Attempts, Opened, Purpose};
use crate::node::rotation::Signed;
use crate::random::SYSTEM;

/// How long an exchange may take in all.
const TIME: Duration = Duration::from_secs(20);
/// Bytes that wait between the engine and us, each way.
const PIPE: usize = 16 * 1024;
const ONE_HOP: HopCount = HopCount::new(1).expect("one is in range");

/// Why an exchange came to nothing.
enum Failure {
    /// The answer was refused.
    Refused(Refused),
    /// The circuit ended before the answer did, or was not opened.
    Circuit(Option<Outcome>),
    /// Nothing came for too long.
    Late,
    /// There is no path, or the node is stopping.
    Nowhere,
}

/// Asks `whom` for descriptors, and takes in what it tells.
pub(super) async fn ask(node: &Node, whom: NodeId, own: Option<Signed>) -> Exchanged {
    let directory = &node.inner.directory;
    let Some(path) = choose(node, whom, own.is_some()).await else { return Exchanged::Failed };
    directory.tallies().exchanges.asked += 1;
    let hops: Vec<_> = path.iter().map(|hop| HopInfo { node: hop.node, address: hop.address }).collect();
    let mut reader = AnswerReader::new(Want::MAX);
    let result = converse(node, path, &hops, own, &mut reader).await;
    {
        let exchanges = &mut directory.tallies().exchanges;
        exchanges.taken += reader.tally().taken();
        for (refused, count) in reader.tally().iter().filter(|(_, count)| *count > 0) {
            *exchanges.refused.entry(refused.to_string()).or_default() += count;
        }
        let count = if result.is_ok() { &mut exchanges.answered } else { &mut exchanges.failed };
        *count += 1;
    }
    match result {
        Ok(()) => {
            hops.iter().for_each(|hop| directory.succeeded(hop.node));
            directory.answered(whom, true);
            return if reader.is_full() { Exchanged::Full } else { Exchanged::Partial };
        }
        Err(Failure::Refused(refused)) => {
            tracing::debug!(%refused, "an exchange's answer was refused");
            directory.answered(whom, false);
        }
        Err(Failure::Circuit(Some(outcome))) => {
            let _no_other_attempt = node.learn_from(&hops, &outcome, &mut Attempts::default());
        }
        // Over several hops nobody knows whose fault it was.
        Err(Failure::Late) if hops.len() == 1 => directory.answered(whom, false),
        Err(Failure::Late | Failure::Circuit(None)) => directory.doubted(hops.iter().map(|hop| hop.node).collect()),
        Err(Failure::Nowhere) => {}
    }
    Exchanged::Failed
}

/// A node that answers links asks over one hop: it has nothing to hide there. A client asks over a path of its usual length as soon as it
/// knows enough nodes for one.
async fn choose(node: &Node, whom: NodeId, serving: bool) -> Option<Vec<ChosenHop>> {
    let inner = &node.inner;
    let lengths = if serving { [ONE_HOP].as_slice() } else { &[inner.hops, ONE_HOP] };
    for &hops in lengths {
        let wanted = Wanted {
            hops,
            last: LastHop::Node(whom),
            strictness: inner.strictness,
            avoid: Vec::new(),
            isolation: None,
        };
        match inner.directory.path(wanted).await? {
            Ok(path) => return Some(path),
            Err(PathError::UnknownNode) => return None,
            Err(_) => {}
        }
    }
    None
}

async fn converse(
    node: &Node,
    path: Vec<ChosenHop>,
    hops: &[HopInfo],
    own: Option<Signed>,
    reader: &mut AnswerReader,
) -> Result<(), Failure> {
    let deadline = Instant::now() + TIME;
    let digest = node.inner.directory.digest().await.ok_or(Failure::Nowhere)?;
    let request = request(&digest, own.as_ref());
    let purpose = Purpose {
        target: &Target::Service(Service::Phonebook),
        last: LastHop::Service,
        options: BeginOptions { sign: false, once: false },
        isolation: None,
        attempts: &Attempts::default(),
        first: &request,
        deadline,
    };
    let circuit = node.launch_over(path, &purpose).await.map_err(|_| Failure::Nowhere)?;
    let (mut ours, engines) = duplex(PIPE);
    circuit.command(Command::AttachPipe(circuit.name, engines));
    let answered = async {
        // A request fits into the pipe, so this does not wait for an answerer that speaks before it has heard it.
        let _cut_off = ours.write_all(&request[circuit.sent..]).await;
        let _cut_off = ours.shutdown().await;
        read(node, hops, &mut ours, &circuit, reader).await
    };
    timeout_at(deadline, answered).await.unwrap_or(Err(Failure::Late))
}

fn request(digest: &[(NodeId, u64)], own: Option<&Signed>) -> Vec<u8> {
    let salt = Salt::random(&mut SYSTEM.clone());
    let mut bits = vec![0; filter_len(digest.len())];
    let mut filter = FilterBuilder::new(salt, digest.len(), &mut bits);
    digest.iter().for_each(|(node, sequence)| filter.insert(node, *sequence));
    let mut request = Request {
        kind: SampleKind::Random,
        want: Want::MAX,
        filter: filter.finish(),
        announcement: own.map(|own| own.bytes.as_slice()),
    };
    let mut bytes = vec![0; REQUEST_MAX_LEN];
    let len = request.emit(&mut bytes).or_else(|_| {
        // Nothing of it can be wrong; but better a poor question than none.
        (request.filter, request.announcement) = (Filter::empty(salt), None);
        request.emit(&mut bytes)
    });
    bytes.truncate(len.unwrap_or(0));
    bytes
}

async fn read(
    node: &Node,
    hops: &[HopInfo],
    stream: &mut DuplexStream,
    circuit: &Opened,
    reader: &mut AnswerReader,
) -> Result<(), Failure> {
    let teller = hops.last().map(|hop| hop.address).ok_or(Failure::Nowhere)?;
    let mut piece = vec![0; PIPE];
    loop {
        let read = stream.read(&mut piece).await.unwrap_or(0);
        if read == 0 {
            break;
        }
        let mut input = &piece[..read];
        while let Some((id, descriptor)) = reader.read(&mut input).map_err(Failure::Refused)? {
            match judge(node, id, descriptor, Teller::Peer(teller)).await.ok_or(Failure::Nowhere)? {
                Verdict::Taken => reader.judge(Ok(())),
                Verdict::Refused(refused) => reader.judge(Err(refused)),
                Verdict::PassedOver(refused) => {
                    reader.pass_over(refused);
                    Ok(())
                }
            }
            .map_err(Failure::Refused)?;
        }
    }
    if !reader.is_complete() {
        // The end of the pipe: of the answer, or of the circuit?
        let mut progress = circuit.progress.clone();
        let ended = progress.wait_for(|progress| progress.outcome.is_some()).await;
        let outcome = ended.map_err(|_| Failure::Circuit(None))?.outcome;
        if circuit.failure().is_some() {
            return Err(Failure::Circuit(outcome));
        }
    }
    reader.finish().map_err(Failure::Refused)
}

/// What became of a descriptor.
enum Verdict {
    Taken,
    Refused(Refused),
    /// Refused, and nobody blamed.
    PassedOver(Refused),
}

/// Verifies a descriptor and hands it to the phonebook; `None` if the node is stopping.
async fn judge(node: &Node, id: NodeId, descriptor: Descriptor, teller: Teller) -> Option<Verdict> {
    let inner = &node.inner;
    if id == inner.node {
        return Some(Verdict::Refused(Refused::Own));
    }
    let now = inner.clock.now();
    let verified = inner.workers.call(move || {
        let verified = VerifiedDescriptor::verify_stored(descriptor)?;
        verified.judge_validity(now)?;
        Ok(verified)
    });
    let verified = match verified.await? {
        Ok(verified) => verified,
        Err(error @ (DescriptorError::Expired | DescriptorError::NotYetValid)) => {
            // One of two clocks is wrong, and it may be ours.
            let (_, in_doubt) = inner.directory.clock().await?;
            let refused = Refused::from(error);
            return Some(if in_doubt { Verdict::PassedOver(refused) } else { Verdict::Refused(refused) });
        }
        Err(error) => return Some(Verdict::Refused(error.into())),
    };
    let taken = inner.directory.insert(vec![verified], teller).await?;
    Some(match taken {
        Taken { known: 1.., .. } => Verdict::Refused(Refused::NotNewer),
        Taken { full: 1.., .. } => Verdict::Refused(Refused::Full),
        Taken { own: 1.., .. } => Verdict::Refused(Refused::Own),
        Taken { disputed: 1.., .. } => Verdict::Refused(Refused::Disputed),
        Taken { expired: 1.., .. } => Verdict::PassedOver(Refused::Validity),
        _ => Verdict::Taken,
    })
}
