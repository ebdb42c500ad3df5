//! Exchanges that others have begun. At most 32 conversations at one time (the engine sees to that), 20 seconds each.

use std::time::Duration;

use bulbil_core::phonebook::VerifiedDescriptor;
use bulbil_core::phonebook::exchange::{AnswerWriter, Filter, REQUEST_MAX_LEN, Request, SampleKind, with_own};
use bulbil_core::wire::EndReason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::engine::clock::WallClock;
use crate::engine::service::ServiceCall;
use crate::engine::workers::Workers;
use crate::node::directory::{Directory, Part, Skip, Teller};
use crate::node::rotation::Own;

/// How long an exchange may take in all.
const TIME: Duration = Duration::from_secs(20);
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
        let served = match timeout(TIME, self.answer(&mut call)).await {
            Ok(Ok(())) => true,
            Ok(Err(reason)) => {
                call.refuse(reason);
                false
            }
            Err(_) => {
                call.refuse(EndReason::TimedOut);
                false
            }
        };
        let exchanges = &mut self.directory.tallies().exchanges;
        let count = if served { &mut exchanges.served } else { &mut exchanges.turned_away };
        *count += 1;
    }

    async fn answer(&self, call: &mut ServiceCall) -> Result<(), EndReason> {
        let mut bytes = Vec::with_capacity(REQUEST_MAX_LEN + 1);
        let mut limited = (&mut call.stream).take(REQUEST_MAX_LEN as u64 + 1);
        limited.read_to_end(&mut bytes).await.map_err(|_| EndReason::Cancelled)?;
        if bytes.len() > REQUEST_MAX_LEN {
            return Err(EndReason::Protocol);
        }
        let request = Request::parse(&bytes).map_err(|_| EndReason::Protocol)?;
        let announced = request.announced().transpose().map_err(|_| EndReason::Protocol)?;

        let own = self.own.borrow().as_ref().map(|own| std::sync::Arc::clone(&own.card));
        let own = own.filter(|card| !request.filter.holds(&card.node(), card.descriptor().sequence));
        let part = match request.kind {
            SampleKind::Random => Part::Random,
            SampleKind::Epoch => Part::Epoch,
        };
        let want = usize::from(request.want.value()) - usize::from(own.is_some());
        let sample = self.directory.sample(part, want, skip(&request)).await.ok_or(EndReason::Shutdown)?;
        let count = sample.len() + usize::from(own.is_some());
        let mut writer = AnswerWriter::new(count, request.want).ok_or(EndReason::Internal)?;
        let mut cards = with_own(sample.iter().map(AsRef::as_ref), own.as_deref());
        let mut piece = vec![0; PIECE];
        loop {
            let len = writer.fill(&mut cards, &mut piece).map_err(|_| EndReason::Internal)?;
            if len == 0 {
                break;
            }
            call.stream.write_all(&piece[..len]).await.map_err(|_| EndReason::Cancelled)?;
        }
        call.stream.shutdown().await.map_err(|_| EndReason::Cancelled)?;
        if let Some(descriptor) = announced {
            let now = self.clock.now();
            let verified = self.workers.call(move || VerifiedDescriptor::verify(descriptor, now)).await;
            if let Some(Ok(card)) = verified {
                self.directory.insert(vec![card], Teller::Announced).await;
            }
        }
        Ok(())
    }
}

/// What the asker has.
fn skip(request: &Request<'_>) -> Skip {
    let (salt, bits) = (request.filter.salt(), request.filter.as_bytes().to_vec());
    Box::new(move |card| {
        let filter = Filter::new(salt, &bits);
        filter.is_ok_and(|filter| filter.holds(&card.node(), card.descriptor().sequence))
    })
}
