//! An exchange that this node has begun.

use std::time::Duration;

use bulbil_core::node::Outcome;
use bulbil_core::phonebook::exchange::{
    AnswerReader, Disclosure, Exchanged, FILTER_MAX_LEN, Filter, Held, REQUEST_MAX_LEN, Refused, Request, Salt,
    SampleKind, Want, is_validity_fault,
};
use bulbil_core::phonebook::{HopCount, LastHop, VerifiedDescriptor};
use bulbil_core::wire::message::BeginOptions;
use bulbil_core::wire::{Descriptor, EndReason, NodeId, Service, Target};
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

/// How to ask.
pub(super) struct Way {
    /// The last hop is asked.
    pub path: Vec<ChosenHop>,
    /// What it may know of us.
    pub disclosure: Disclosure,
}

/// Asks `whom`, or over another path than one to it somebody else, for descriptors, and takes in what it tells. `last` is what the
/// exchange before came to.
pub(super) async fn ask(node: &Node, whom: NodeId, own: Option<Signed>, last: Option<Exchanged>) -> Exchanged {
    let directory = &node.inner.directory;
    let Some(way) = choose(node, whom, own.is_some()).await else { return Exchanged::Failed };
    directory.tallies().exchanges.asked += 1;
    let hops: Vec<_> = way.path.iter().map(|hop| HopInfo { node: hop.node, address: hop.address }).collect();
    let whom = hops.last().map_or(whom, |hop| hop.node);
    let want = way.disclosure.want(last);
    let mut reader = AnswerReader::new(want);
    let result = converse(node, way, &hops, own, want, &mut reader).await;
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
            return reader.outcome();
        }
        Err(Failure::Refused(refused)) => {
            tracing::debug!(%refused, "an exchange's answer was refused");
            directory.answered(whom, false);
        }
        // It has no room for us at the moment, and said so: it is there.
        Err(Failure::Circuit(Some(outcome))) if is_busy(&outcome, hops.len()) => {}
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

/// Whether the node at the end of `hops` hops has refused for want of room.
fn is_busy(outcome: &Outcome, hops: usize) -> bool {
    matches!(outcome.end, Some((EndReason::Busy, by)) if by.value() + 1 == hops)
}

/// A node that answers links asks over one hop: it has nothing to hide there. A client asks over a path of its usual length, if there is none to
/// `whom` then one to somebody else; over one hop only while it is joining. Otherwise it has to wait until there is a path again, however
/// long that takes: whoever can spoil its paths must not be shown its address for that.
pub(super) async fn choose(node: &Node, whom: NodeId, serving: bool) -> Option<Way> {
    let inner = &node.inner;
    let path = async |hops, last| {
        let strictness = inner.strictness;
        let wanted = Wanted { hops, last, strictness, avoid: Vec::new(), isolation: None };
        inner.directory.path(wanted).await?.ok()
    };
    if serving {
        let path = path(ONE_HOP, LastHop::Node(whom)).await?;
        return Some(Way { path, disclosure: Disclosure::All });
    }
    for last in [LastHop::Node(whom), LastHop::Service] {
        if let Some(path) = path(inner.hops, last).await {
            return Some(Way { path, disclosure: Disclosure::Half });
        }
    }
    if !inner.directory.is_joining(inner.hops, inner.strictness).await? {
        return None;
    }
    let path = path(ONE_HOP, LastHop::Node(whom)).await?;
    Some(Way { path, disclosure: Disclosure::Nothing })
}

async fn converse(
    node: &Node,
    Way { path, disclosure }: Way,
    hops: &[HopInfo],
    own: Option<Signed>,
    want: Want,
    reader: &mut AnswerReader,
) -> Result<(), Failure> {
    let deadline = Instant::now() + TIME;
    let held = node.inner.directory.digest().await.ok_or(Failure::Nowhere)?;
    let request = request(disclosure, want, held, own.as_ref());
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

/// Who announces itself has itself, too.
pub(super) fn request(disclosure: Disclosure, want: Want, mut held: Vec<Held>, own: Option<&Signed>) -> Vec<u8> {
    held.extend(own.map(|own| Held { node: own.card.node(), sequence: own.card.descriptor().sequence, met: false }));
    let mut bits = vec![0; FILTER_MAX_LEN];
    let mut request = Request {
        kind: SampleKind::Random,
        want,
        filter: disclosure.filter(held.into_iter(), &mut bits, &mut SYSTEM.clone()),
        announcement: own.map(|own| own.bytes.as_slice()),
    };
    let mut bytes = vec![0; REQUEST_MAX_LEN];
    let len = request.emit(&mut bytes).or_else(|_| {
        // Nothing of it can be wrong; but better a poor question than none.
        (request.filter, request.announcement) = (Filter::empty(Salt::random(&mut SYSTEM.clone())), None);
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
    let verified = inner.workers.call(move || VerifiedDescriptor::verify_stored(descriptor));
    let verified = match verified.await? {
        Ok(verified) => verified,
        Err(error) => return Some(Verdict::Refused(error.into())),
    };
    if let Err(error) = verified.judge_validity(now) {
        // Two clocks may differ a little; if they differ by more, one of them is wrong, and it may be ours.
        let in_doubt = async || Some(inner.directory.clock().await?.1);
        let blamed = is_validity_fault(verified.descriptor(), now) && !in_doubt().await?;
        let refused = Refused::from(error);
        return Some(if blamed { Verdict::Refused(refused) } else { Verdict::PassedOver(refused) });
    }
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
