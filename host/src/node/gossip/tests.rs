//! Both ends of an exchange, without a network: who is asked over what, what it is told, and who is sent away.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bulbil_core::circuit::LinkId;
use bulbil_core::phonebook::exchange::{
    Disclosure, Exchanged, FILTER_MAX_LEN, FILTER_NODES_MAX, Filter, FilterBuilder, Held, REQUEST_MAX_LEN, Request,
    Salt, SampleKind, Want,
};
use bulbil_core::phonebook::{ClockVerdict, Grouping, Guards, HopCount, LastHop, Strictness, VerifiedDescriptor};
use bulbil_core::wire::{EndReason, NodeId, Service, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{mpsc, oneshot, watch};

use super::ask::{ask, choose, request};
use super::{Gossip, Intervals, Server, serve};
use crate::config::Bootstrap;
use crate::control::testing::signed;
use crate::engine::Command;
use crate::engine::clock::WallClock;
use crate::engine::service::{Place, Services};
use crate::engine::shell::{Met, Shown, unix_time};
use crate::node::directory::{Directory, Settings};
use crate::node::rotation::Signed;
use crate::node::{Node, NodeBuilder, Sizes};

/// A node that asks nobody of its own accord.
fn alone() -> NodeBuilder {
    let long = Duration::from_secs(3600);
    let sizes = Sizes { links: 8, circuits: 16, cells: 1024, onions: 8, origins: 8, replay: 64 };
    let intervals = Intervals { exchange: None, test: long, retry: long, save: long };
    Node::builder().sizes(sizes).intervals(intervals)
}

/// One for paths of two hops.
async fn quiet(clock: WallClock) -> Node {
    alone().clock(clock).paths(HopCount::new(2).unwrap(), Strictness::Ignore).start().await.unwrap()
}

/// One of three relays, on this machine, where nobody listens.
fn relay(number: usize, hours: u64) -> VerifiedDescriptor {
    let descriptor = signed(number, |descriptor| {
        descriptor.addresses = [SocketAddr::from(([127, 0, 0, 1], 1 + number as u16))].into_iter().collect();
        descriptor.valid_until = UnixTime(unix_time().0 + hours * 3600);
    });
    VerifiedDescriptor::verify(descriptor, unix_time()).unwrap()
}

fn meet(node: &Node, card: &VerifiedDescriptor) {
    node.inner.directory.show(card.address(), Shown::Descriptor(card));
}

/// How many hops there are to whom a node asks, and what it tells.
async fn way(node: &Node, whom: NodeId, serving: bool) -> Option<(usize, Disclosure)> {
    let way = choose(node, whom, serving).await?;
    Some((way.path.len(), way.disclosure))
}

#[tokio::test]
async fn a_client_shows_its_address_only_while_it_joins() {
    let clock = WallClock::default();
    let node = quiet(clock.clone()).await;
    let (lasting, brief) = (relay(0, 10), relay(1, 1));
    let whom = lasting.node();
    assert_eq!(way(&node, whom, false).await, None, "nobody is known");
    meet(&node, &lasting);
    assert_eq!(
        way(&node, whom, false).await,
        Some((1, Disclosure::Nothing)),
        "there is no other way to hear of others"
    );
    meet(&node, &brief);
    assert_eq!(way(&node, whom, false).await, Some((2, Disclosure::Half)));
    assert_eq!(way(&node, whom, true).await, Some((1, Disclosure::All)), "a relay has nothing to hide");

    // The other one's descriptor is not valid any more: there is no path, until it is heard of again.
    clock.set_ahead(2 * 3600);
    assert_eq!(way(&node, whom, false).await, None);
    assert_eq!(way(&node, whom, true).await, Some((1, Disclosure::All)));
    clock.set_ahead(0);
    // To whom there is no path, another is asked.
    assert_eq!(way(&node, NodeId([7; 32]), false).await, Some((2, Disclosure::Half)));
    node.shutdown().await;
}

#[test]
fn requests_tell_what_they_should() {
    let held: Vec<_> =
        (0..200u8).map(|number| Held { node: NodeId([number; 32]), sequence: 3, met: number < 100 }).collect();
    let told = |bytes: &[u8], range: std::ops::Range<usize>| {
        let request = Request::parse(bytes).unwrap();
        held[range].iter().filter(|held| request.filter.holds(&held.node, held.sequence)).count()
    };
    let (mut met, mut unmet) = (0, 0);
    for _ in 0..20 {
        let bytes = request(Disclosure::Half, Want::MAX, held.clone(), None);
        met += told(&bytes, 0..100);
        unmet += told(&bytes, 100..200);
        assert_eq!(Request::parse(&bytes).unwrap().announcement, None);
    }
    // Of 2000 each: half and one in nine of the rest; one in nine.
    assert!((950..1250).contains(&met) && (100..400).contains(&unmet), "{met} {unmet}");
    assert_eq!(told(&request(Disclosure::Nothing, Want::MAX, held.clone(), None), 0..200), 0);

    let card = Arc::new(relay(0, 1));
    let mut bytes = vec![0; 2000];
    let len = card.descriptor().emit(&mut bytes).unwrap();
    let own = Signed { bytes: bytes[..len].to_vec(), card: Arc::clone(&card) };
    let few = Disclosure::Half.want(Some(Exchanged::Partial));
    let bytes = request(Disclosure::All, few, held.clone(), Some(&own));
    assert_eq!(told(&bytes, 0..200), 200);
    let request = Request::parse(&bytes).unwrap();
    assert!(request.filter.holds(&card.node(), 7), "it has itself");
    assert_eq!((request.kind, request.want), (SampleKind::Random, few));
    assert_eq!(request.announced(), Some(Ok(card.descriptor().clone())));
}

/// A conversation with a node's phonebook: the asker's end, and how it is ended if not by an answer.
struct Call {
    stream: DuplexStream,
    ended: oneshot::Receiver<EndReason>,
    _place: Arc<Place>,
}

fn call(services: &Services) -> Call {
    let (end, ended) = oneshot::channel();
    let end = std::sync::Mutex::new(Some(end));
    let fail = move |reason, _| {
        if let Some(end) = end.lock().unwrap().take() {
            let _nobody_waits = end.send(reason);
        }
    };
    let (stream, place) = services.begin(Service::Phonebook, LinkId::new(1, 1), Arc::new(fail)).unwrap();
    Call { stream, ended, _place: place }
}

/// What a node answers to those who call.
fn serving(node: &Node) -> (Services, tokio::task::JoinHandle<()>) {
    let inner = &node.inner;
    let (calls, called) = mpsc::channel(64);
    let server = Server {
        directory: inner.directory.clone(),
        workers: inner.workers.clone(),
        own: watch::channel(None).1,
        clock: inner.clock.clone(),
    };
    (Services::new(Some(calls)), tokio::spawn(serve(server, called)))
}

#[tokio::test]
async fn whoever_says_nothing_is_sent_away_soon() {
    let node = quiet(WallClock::default()).await;
    let (services, serving) = serving(&node);
    // From here on time passes only while everybody waits.
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    for part in [&b""[..], &[1, 1, 128, 0, 0]] {
        let mut slow = call(&services);
        slow.stream.write_all(part).await.unwrap();
        assert_eq!(slow.ended.await, Ok(EndReason::TimedOut));
    }
    let silent = begun.elapsed();
    assert!((Duration::from_secs(10)..Duration::from_secs(11)).contains(&silent), "{silent:?}");
    tokio::time::resume();
    drop(services);
    serving.await.unwrap();
    node.shutdown().await;
}

#[tokio::test]
async fn a_link_that_is_full_of_the_silent_has_room_for_who_asks() {
    let node = quiet(WallClock::default()).await;
    let (services, serving) = serving(&node);
    let mut silent: Vec<_> = (0..50).map(|_| call(&services)).collect();
    let filter = Filter::empty(Salt([1; 8]));
    let request = Request { kind: SampleKind::Random, want: Want::MAX, filter, announcement: None };
    let mut bytes = vec![0; REQUEST_MAX_LEN];
    let len = request.emit(&mut bytes).unwrap();
    let mut asking = call(&services);
    asking.stream.write_all(&bytes[..len]).await.unwrap();
    asking.stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    asking.stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, [1, 0]);
    // The first ones had to go for those behind them, and one for who asked.
    for early in silent.drain(..19) {
        assert_eq!(early.ended.await, Ok(EndReason::Busy));
    }
    assert!(silent.iter_mut().all(|late| late.ended.try_recv() != Ok(EndReason::Busy)));
    drop((silent, services));
    serving.await.unwrap();
    node.shutdown().await;
}

/// What tests nodes for a node that asks nobody: the test answers for the others.
struct Tester {
    directory: Directory,
    asked: mpsc::UnboundedReceiver<Command>,
    clock: WallClock,
}

impl Tester {
    fn new(test: Duration) -> Self {
        let clock = WallClock::default();
        let directory = Directory::start(Settings {
            own: NodeId([9; 32]),
            reuse: Duration::ZERO,
            guards: Guards::new(),
            stored: None,
            grouping: Grouping::Address,
            retry: Duration::from_secs(60),
            lonely: Duration::from_secs(300),
            clock: clock.clone(),
        });
        let (commands, asked) = mpsc::unbounded_channel();
        let intervals = Intervals { exchange: None, test, ..Intervals::default() };
        let own = watch::channel(None).1;
        tokio::spawn(Gossip { node: Weak::new(), directory: directory.clone(), commands, own, intervals }.run());
        let running = clock.clone();
        // The calendar goes with the clock that the test lets run, or it would seem to have been set.
        tokio::spawn(async move {
            let begun = tokio::time::Instant::now();
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                running.set_ahead(begun.elapsed().as_secs() as i64);
            }
        });
        Self { directory, asked, clock }
    }

    /// The next link that is to be made, and when.
    async fn contact(&mut self) -> (tokio::time::Instant, NodeId, oneshot::Sender<Met>) {
        match self.asked.recv().await {
            Some(Command::Contact(_, Some(node), reply)) => (tokio::time::Instant::now(), node, reply),
            _ => panic!("only links to nodes that are known"),
        }
    }

    fn show(&self, card: &VerifiedDescriptor) {
        self.directory.show(card.address(), Shown::Time(card.node(), self.clock.now()));
        self.directory.show(card.address(), Shown::Descriptor(card));
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_asks_nobody_hears_from_others_all_the_same() {
    let mut tester = Tester::new(Duration::from_secs(2));
    let cards = [0, 1, 2].map(|number| relay(number, 10));
    cards.iter().for_each(|card| tester.show(card));
    assert_eq!(tester.directory.clock().await, Some((ClockVerdict::Agrees, false)));
    let begun = tokio::time::Instant::now();
    let mut last = begun;
    // Nobody has to be met again within the hour.
    while last < begun + Duration::from_secs(3000) {
        let (at, node, reply) = tester.contact().await;
        // It would take itself for cut off after 300.
        assert!(at < last + Duration::from_secs(200), "{:?} of silence", at - last);
        let card = cards.iter().find(|card| card.node() == node).unwrap();
        tester.show(card);
        reply.send(Ok((Box::new(card.clone()), tester.clock.now()))).unwrap();
        last = at;
    }
}

#[tokio::test(start_paused = true)]
async fn a_turn_for_which_there_is_no_room_is_not_lost() {
    // A second and a half between those that can wait.
    let mut tester = Tester::new(Duration::from_millis(100));
    // Nobody says what time it is, so somebody is to be heard at each turn.
    for card in [0, 1, 2, 3, 4, 5].map(|number| relay(number, 10)) {
        tester.directory.show(card.address(), Shown::Descriptor(&card));
    }
    let mut silent = Vec::new();
    for _ in 0..5 {
        silent.push(tester.contact().await);
    }
    let waited = silent[4].0 - silent[0].0;
    // The first one's time has passed, and then the next turn is its successor's.
    let soon = super::TEST_TIME..super::TEST_TIME + Duration::from_millis(200);
    assert!(soon.contains(&waited), "{waited:?}");
}

#[tokio::test]
async fn answers_leave_out_what_the_asker_has() {
    let node = quiet(WallClock::default()).await;
    let cards = [relay(0, 1), relay(1, 1)];
    cards.iter().for_each(|card| meet(&node, card));
    let (services, serving) = serving(&node);
    for kind in [SampleKind::Random, SampleKind::Epoch] {
        for (has, count) in [(&[][..], 2), (&cards[..1], 1), (&cards[1..], 1), (&cards[..], 0)] {
            // Much longer than it has to be: it makes no mistakes.
            let mut bits = [0; FILTER_MAX_LEN];
            let mut filter = FilterBuilder::new(Salt([1; 8]), FILTER_NODES_MAX, &mut bits);
            has.iter().for_each(|card| filter.insert(&card.node(), 7));
            let request = Request { kind, want: Want::MAX, filter: filter.finish(), announcement: None };
            let mut bytes = vec![0; REQUEST_MAX_LEN];
            let len = request.emit(&mut bytes).unwrap();
            let mut asking = call(&services);
            asking.stream.write_all(&bytes[..len]).await.unwrap();
            asking.stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            asking.stream.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer[..2], [1, count], "{kind:?}");
        }
    }
    drop(services);
    serving.await.unwrap();
    node.shutdown().await;
}

#[tokio::test]
async fn a_node_that_has_no_room_for_an_exchange_has_not_failed() {
    let (calls, mut serving) = mpsc::channel(1);
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let whom = alone().listen(listen).relay().serve(calls).start().await.unwrap();
    let contact = Bootstrap { address: whom.local_addr().unwrap(), fingerprint: Some(whom.fingerprint()) };
    let hops = HopCount::new(1).unwrap();
    let node = alone().paths(hops, Strictness::Ignore).bootstrap(contact).start().await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    assert!(node.inner.wait_for_path(LastHop::Service, None, &[], deadline).await.is_ok());
    for (reason, blamed) in [(EndReason::Busy, false), (EndReason::Shutdown, true)] {
        let mut doubts = node.inner.directory.doubts();
        doubts.mark_unchanged();
        let (came_of_it, ()) = tokio::join!(ask(&node, whom.fingerprint(), None, None), async {
            serving.recv().await.unwrap().refuse(reason);
        });
        assert_eq!(came_of_it, Exchanged::Failed);
        assert_eq!(doubts.has_changed().unwrap(), blamed, "{reason:?}");
    }
    node.shutdown().await;
    whom.shutdown().await;
}
