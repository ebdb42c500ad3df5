//! Exchanges that others have begun: as many at one time as the engine has places for, each for a few seconds. What a request costs is
//! spent on a worker; the task that owns the phonebook hands out a list, once a second a fresh one.

use std::sync::Arc;
use std::time::Duration;

use bulbil_core::phonebook::exchange::{
    AnswerWriter, Filter, REQUEST_MAX_LEN, Request, Salt, SampleKind, draw_sample, with_own,
};
use bulbil_core::phonebook::{Epoch, VerifiedDescriptor};
use bulbil_core::wire::EndReason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::engine::clock::WallClock;
use crate::engine::service::ServiceCall;
use crate::engine::workers::Workers;
use crate::node::directory::{Directory, Part, Presentable, Teller};
use crate::node::rotation::Own;
use crate::random::SYSTEM;

/// A request fits into the credit that a circuit begins with, so it is whole as soon as it comes: whoever is silent has nothing to say.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// Until the asker has taken an answer of up to 240 KB.
const ANSWER_TIME: Duration = Duration::from_secs(20);
/// Bytes of an answer that are written at once.
const PIECE: usize = 8 * 1024;

/// What an answer is made from.
#[derive(Clone)]
pub(in crate::node) struct Server {
    pub directory: Directory,
    pub workers: Workers,
    pub own: Own,
    pub clock: WallClock,
}

/// Answers those who call.
pub(in crate::node) async fn serve(server: Server, mut calls: mpsc::Receiver<ServiceCall>) {
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            call = calls.recv() => match call {
                Some(call) => {
                    let server = server.clone();
                    serving.spawn(async move { server.attend(call).await });
                }
                None => return,
            },
            Some(_) = serving.join_next() => {}
        }
    }
}

impl Server {
    async fn attend(self, mut call: ServiceCall) {
        let served = match self.answer(&mut call).await {
            Ok(()) => true,
            Err(reason) => {
                call.refuse(reason);
                false
            }
        };
        let exchanges = &mut self.directory.tallies().exchanges;
        let count = if served { &mut exchanges.served } else { &mut exchanges.turned_away };
        *count += 1;
    }

    async fn answer(&self, call: &mut ServiceCall) -> Result<(), EndReason> {
        let late = |_| EndReason::TimedOut;
        let bytes = timeout(REQUEST_TIME, read(&mut call.stream)).await.map_err(late)??;
        call.heard();
        let request = Request::parse(&bytes).map_err(|_| EndReason::Protocol)?;
        let announced = request.announced().transpose().map_err(|_| EndReason::Protocol)?;
        timeout(ANSWER_TIME, self.tell(&request, &mut call.stream)).await.map_err(late)??;
        if let Some(descriptor) = announced {
            let now = self.clock.now();
            let verified = self.workers.call(move || VerifiedDescriptor::verify(descriptor, now)).await;
            if let Some(Ok(card)) = verified {
                self.directory.insert(vec![card], Teller::Announced).await;
            }
        }
        Ok(())
    }

    async fn tell(&self, request: &Request<'_>, stream: &mut DuplexStream) -> Result<(), EndReason> {
        let own = self.own.borrow().as_ref().map(|own| Arc::clone(&own.card));
        let own = own.filter(|card| !request.filter.holds(&card.node(), card.descriptor().sequence));
        let want = usize::from(request.want.value()) - usize::from(own.is_some());
        let kind = request.kind;
        let part = match kind {
            SampleKind::Random => Part::Random,
            SampleKind::Epoch => Part::Epoch,
        };
        let cards = self.directory.presentable(part).await.ok_or(EndReason::Shutdown)?;
        let held = Held { salt: request.filter.salt(), bits: request.filter.as_bytes().to_vec() };
        let epoch = Epoch::at(self.clock.now());
        let sample = self.workers.call(move || match kind {
            SampleKind::Random => random_sample(&cards, want, &held),
            SampleKind::Epoch => epoch_sample(&cards, want, epoch, &held),
        });
        let sample = sample.await.ok_or(EndReason::Internal)?;
        let count = sample.len() + usize::from(own.is_some());
        let mut writer = AnswerWriter::new(count, request.want).ok_or(EndReason::Internal)?;
        let mut cards = with_own(sample.iter().map(AsRef::as_ref), own.as_deref());
        let mut piece = vec![0; PIECE];
        loop {
            let len = writer.fill(&mut cards, &mut piece).map_err(|_| EndReason::Internal)?;
            if len == 0 {
                break;
            }
            stream.write_all(&piece[..len]).await.map_err(|_| EndReason::Cancelled)?;
        }
        stream.shutdown().await.map_err(|_| EndReason::Cancelled)
    }
}

/// All that the asker says.
async fn read(stream: &mut DuplexStream) -> Result<Vec<u8>, EndReason> {
    let mut bytes = Vec::with_capacity(REQUEST_MAX_LEN + 1);
    let mut limited = stream.take(REQUEST_MAX_LEN as u64 + 1);
    limited.read_to_end(&mut bytes).await.map_err(|_| EndReason::Cancelled)?;
    if bytes.len() > REQUEST_MAX_LEN { Err(EndReason::Protocol) } else { Ok(bytes) }
}

/// What the asker has, out of its request.
struct Held {
    salt: Salt,
    bits: Vec<u8>,
}

impl Held {
    fn holds(&self, card: &VerifiedDescriptor) -> bool {
        let filter = Filter::new(self.salt, &self.bits);
        filter.is_ok_and(|filter| filter.holds(&card.node(), card.descriptor().sequence))
    }
}

fn random_sample(cards: &Presentable, want: usize, held: &Held) -> Vec<Arc<VerifiedDescriptor>> {
    let mut drawn: Vec<_> = cards.iter().collect();
    let sample = draw_sample(&mut drawn, want, &mut SYSTEM.clone(), |card| held.holds(card));
    sample.iter().copied().map(Arc::clone).collect()
}

/// The `want` first ones of the epoch without those that the asker has, in ascending order of ids.
fn epoch_sample(cards: &Presentable, want: usize, epoch: Epoch, held: &Held) -> Vec<Arc<VerifiedDescriptor>> {
    let mut sample = cards.to_vec();
    sample.sort_by_cached_key(|card| epoch.rank(&card.node()));
    sample.truncate(want);
    sample.retain(|card| !held.holds(card));
    sample.sort_unstable_by_key(|card| card.node());
    sample
}
