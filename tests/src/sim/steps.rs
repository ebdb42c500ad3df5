//! What follows from an event: who is called, and what is checked after each call.

use std::net::SocketAddr;
use std::time::Duration;

use bulbil_core::client::origin::Reached;
use bulbil_core::driver::More;
use bulbil_core::node::{ConversationId, Usage};
use bulbil_core::time::Instant;
use bulbil_core::wire::{EndReason, Target};
use embedded_io::ErrorKind;

use super::Network;
use super::actor::{Actor, Behaviour, Heard};
use super::node::{SimNode, Token};
use super::resident::Letter;
use super::shell::Notice;
use super::stream::SimStream;
use super::talk::Talk;
use super::wire;
use super::world::{Event, NodeIndex, Owner, TalkIndex};

/// Calls of one node at one instant, beyond which it is taken to run in circles.
const CALLS_MAX: u32 = 10_000;

impl Network<'_, '_> {
    /// Goes to the next event and does what follows from it; answers `false` if nothing is going to happen any more.
    pub fn step(&mut self) -> bool {
        let Some(event) = self.world.borrow_mut().next() else { return false };
        self.steps += 1;
        let node = self.handle(event);
        self.run_woken(node);
        true
    }

    /// Steps until `reached`. Panics after `steps` steps or when nothing happens any more.
    pub fn run_until(&mut self, steps: u64, mut reached: impl FnMut(&Self) -> bool) {
        for _ in 0..steps {
            if reached(self) {
                return;
            }
            assert!(self.step(), "nothing happens any more at {:?}:\n{}", self.now(), self.describe());
        }
        panic!("not reached in {steps} steps, at {:?}:\n{}", self.now(), self.describe());
    }

    /// Lets so much time pass.
    pub fn run_for(&mut self, span: Duration) {
        let end = self.world.borrow().now + span.as_micros() as u64;
        while self.world.borrow().next_at().is_some_and(|at| at <= end) {
            self.step();
        }
        self.world.borrow_mut().now = end;
    }

    /// Runs until no circuit is open anywhere, which must come to pass within an hour, and checks that everything was given back.
    pub fn settle(&mut self) {
        let end = self.now() + Duration::from_secs(3600);
        while self.living().any(|node| node.driver.node().usage().circuits > 0 || self.is_asleep(node)) {
            assert!(self.now() < end, "circuits stay:\n{}", self.describe());
            assert!(self.step(), "circuits stay, and nothing happens:\n{}", self.describe());
        }
        // Jobs and streams of circuits that are gone.
        let jobs = self.world.borrow().delays.jobs.unwrap_or_default();
        self.run_for(Duration::from_secs(5) + Duration::from_micros(jobs));
        for node in self.living() {
            let usage = node.driver.node().usage();
            let empty = Usage { links: usage.links, ..Usage::default() };
            assert_eq!(usage, empty, "node {} keeps something", node.shell.index);
        }
        for (number, talk) in self.talks.iter().enumerate() {
            assert!(talk.connections <= 1, "conversation {number} was connected twice");
            // Who hears an end has heard all: what broke off never looks like that.
            if talk.doubtful {
                continue;
            }
            let Some(target) = &talk.at_target else {
                assert_ne!(talk.app.heard_end(), Some(Heard::End), "conversation {number} ended with nobody");
                continue;
            };
            if talk.app.heard_end() == Some(Heard::End) {
                assert!(
                    target.is_finished() && talk.app.heard() == target.said(),
                    "answer {number}:\n{}",
                    self.describe()
                );
            }
            if target.heard_end() == Some(Heard::End) {
                assert!(
                    talk.app.is_finished() && target.heard() == talk.app.said(),
                    "request {number}:\n{}",
                    self.describe()
                );
            }
        }
    }

    /// Lets time pass until no link is left either, which must come to pass within a quarter of an hour once [`Self::settle`] has found no circuit: then
    /// every node's tables are empty, and nothing has a deadline.
    pub fn settle_links(&mut self) {
        let end = self.now() + Duration::from_secs(900);
        let waits = |node: &SimNode<'_, '_>| {
            node.driver.node().usage() != Usage::default() || node.driver.poll_timeout().is_some()
        };
        while self.living().any(waits) {
            assert!(self.now() < end && self.step(), "links stay:\n{}", self.describe());
        }
        for node in self.living() {
            let index = node.shell.index;
            assert_eq!(node.driver.node().audit(), Ok(()), "node {index}");
            assert!(node.tokens.is_empty(), "node {index} keeps streams: {:?}", node.tokens);
        }
    }

    fn handle(&mut self, event: Event) -> Option<NodeIndex> {
        if let Some(awake) = self.asleep_for(&event) {
            self.world.borrow_mut().at(awake, event);
            return None;
        }
        let now = event.node().map_or_else(|| self.instant(), |node| self.instant_of(node));
        match event {
            Event::Arrive(_) | Event::Room(_) | Event::Unread(_) | Event::Cut(_) => {
                self.world.borrow_mut().handle_pipe(&event);
                None
            }
            Event::Connect(node, link, address) => {
                self.world.borrow_mut().trace(&[2, node as u64]);
                let answerer = {
                    let mut world = self.world.borrow_mut();
                    let answerer = world.addresses.get(&address).copied();
                    let answerer = answerer.filter(|_| !world.loses_connect());
                    answerer.filter(|to| [node, *to].iter().all(|end| !world.unplugged.contains(end)))
                };
                if answerer.is_some_and(|answerer| self.nodes[answerer].dead) {
                    // Nothing comes back.
                    return None;
                }
                let stream = answerer.map(|answerer| {
                    let now = self.instant_of(answerer);
                    let (near, far) = self.world.borrow_mut().pipe(None);
                    self.nodes[node].peers.insert(link, answerer);
                    self.world.borrow_mut().age(near);
                    let far_stream = SimStream::new(&self.world, far, Owner::Link(answerer, far));
                    let other = &mut self.nodes[answerer];
                    if let Some(link) = other.driver.reserve_link(&mut other.shell, now) {
                        other.tokens.insert(far, Token::Link(link));
                        other.peers.insert(link, node);
                        other.driver.handle_accepted(link, far_stream);
                        other.ready.push(Token::Link(link));
                        self.world.borrow_mut().woken.insert(Owner::Link(answerer, far));
                    }
                    self.nodes[node].tokens.insert(near, Token::Link(link));
                    SimStream::new(&self.world, near, Owner::Link(node, near))
                });
                let this = &mut self.nodes[node];
                this.driver.handle_link_stream(&mut this.shell, link, stream.ok_or(ErrorKind::ConnectionRefused), now);
                Some(node)
            }
            Event::Target(node, name, target) => {
                self.handle_target(node, name, &target, now);
                Some(node)
            }
            Event::Peeled(node, job, peeled, onion) => {
                self.world.borrow_mut().trace(&[3, node as u64, u64::from(peeled.is_ok())]);
                self.nodes[node].driver.handle_peeled(job, *peeled, &onion, now);
                Some(node)
            }
            Event::Signed(node, name, time, signature) => {
                self.nodes[node].driver.handle_signed(name, time, &signature, now);
                Some(node)
            }
            Event::Timer(node) => {
                self.nodes[node].timer = None;
                Some(node)
            }
            Event::Tick(talk) => {
                self.tick(talk);
                None
            }
            Event::Nothing => None,
            Event::Alarm(node, alarm) => {
                self.mail.push_back((node, Letter::Alarm(alarm)));
                None
            }
        }
    }

    /// Whether the node's machine sleeps.
    pub(super) fn is_asleep(&self, node: &SimNode<'_, '_>) -> bool {
        self.world.borrow().now < node.asleep_until
    }

    /// When the machine that this is for wakes up, if it sleeps.
    fn asleep_for(&self, event: &Event) -> Option<u64> {
        let answerer = match event {
            Event::Connect(_, _, address) => self.world.borrow().addresses.get(address).copied(),
            _ => None,
        };
        let asleep = [event.node(), answerer].into_iter().flatten().map(|node| &self.nodes[node]);
        asleep.filter(|node| self.is_asleep(node)).map(|node| node.asleep_until).max()
    }

    fn handle_target(&mut self, node: NodeIndex, name: ConversationId, target: &Target, now: Instant) {
        let meant = |talk: &Talk| talk.target == *target && talk.exit.is_none() && talk.path.last() == Some(&node);
        let Some(talk) = self.talks.iter().position(meant) else {
            let again = self.talks.iter().find(|talk| talk.target == *target && talk.path.last() == Some(&node));
            // Under the right keys a turncoat says what it likes, but nobody opens the same onion twice.
            let explained = self.has_any_turned() && again.is_none_or(|talk| talk.repeatable);
            assert!(explained, "node {node} was asked before to reach {target:?}:\n{}", self.describe());
            let this = &mut self.nodes[node];
            this.driver.handle_target(&mut this.shell, name, Err(EndReason::Refused), now);
            return;
        };
        self.world.borrow_mut().trace(&[4, node as u64, talk as u64]);
        let this = &mut self.talks[talk];
        this.connections += 1;
        this.exit = Some((node, name));
        let behaviour = this.wish.target;
        let connected = match behaviour {
            Behaviour::Silent => return,
            Behaviour::Unreached(reason) => Err(reason),
            _ => {
                self.names.insert((node, name), talk);
                let (speaks, hears) = (2 * talk as u64 + 1, 2 * talk as u64);
                let speaks = if behaviour == Behaviour::Echo { hears } else { speaks };
                let stream = self.attach(node, name, Owner::Target(talk), |talks, stream| {
                    talks[talk].at_target = Some(Actor::target(stream, speaks, hears, behaviour));
                    if talks[talk].doubtful {
                        talks[talk].doubt();
                    }
                });
                self.world.borrow_mut().woken.insert(Owner::Target(talk));
                if let Behaviour::Ticker { every, .. } = behaviour {
                    let mut world = self.world.borrow_mut();
                    let at = world.now + every.as_micros() as u64;
                    world.at(at, Event::Tick(talk));
                }
                Ok(stream)
            }
        };
        let this = &mut self.nodes[node];
        if matches!(target, Target::Service(_)) {
            this.driver.handle_service(&mut this.shell, name, connected, now);
        } else {
            let connected = connected.map(|stream| (stream, target_address(talk)));
            this.driver.handle_target(&mut this.shell, name, connected, now);
        }
    }

    fn tick(&mut self, talk: TalkIndex) {
        let this = &mut self.talks[talk];
        let Behaviour::Ticker { every, size, count } = this.wish.target else { return };
        this.ticks += 1;
        let last = this.ticks == count;
        if let Some(target) = &mut this.at_target {
            target.say_more(size, last);
        }
        let mut world = self.world.borrow_mut();
        world.woken.insert(Owner::Target(talk));
        if !last {
            let at = world.now + every.as_micros() as u64;
            world.at(at, Event::Tick(talk));
        }
    }

    /// Calls everybody who has something to do, until nobody has.
    pub(super) fn run_woken(&mut self, first: Option<NodeIndex>) {
        let mut due: Vec<NodeIndex> = first.into_iter().collect();
        let mut calls = 0;
        loop {
            let woken = std::mem::take(&mut self.world.borrow_mut().woken);
            for owner in woken {
                match owner {
                    Owner::Nobody => {}
                    Owner::Resident(node, end) => self.mail.push_back((node, Letter::Ready(end))),
                    Owner::App(talk) => {
                        self.talks[talk].app.run(&mut self.world.borrow_mut());
                        let heard = self.talks[talk].app.heard() > 0;
                        if heard && self.talks[talk].first_heard.is_none() {
                            self.talks[talk].first_heard = Some(self.now());
                        }
                    }
                    Owner::Target(talk) => {
                        if let Some(target) = &mut self.talks[talk].at_target {
                            target.run(&mut self.world.borrow_mut());
                        }
                    }
                    Owner::Link(node, end) | Owner::Outside(node, end) => {
                        if let Some(token) = self.nodes[node].tokens.get(&end).copied() {
                            self.nodes[node].ready.push(token);
                        }
                        due.push(node);
                    }
                }
            }
            due.sort_unstable();
            due.dedup();
            if due.is_empty() {
                return;
            }
            for node in std::mem::take(&mut due) {
                calls += 1;
                assert!(calls < CALLS_MAX, "node {node} runs in circles:\n{}", self.describe());
                if self.run_node(node) {
                    due.push(node);
                }
            }
        }
    }

    /// Calls a node's driver as a shell must; answers whether it wants to be called again.
    fn run_node(&mut self, index: NodeIndex) -> bool {
        let now = self.instant_of(index);
        if self.nodes[index].dead || self.is_asleep(&self.nodes[index]) {
            return false;
        }
        let this = &mut self.nodes[index];
        wire::with(|wire| wire.running = index);
        let mut again = Vec::new();
        for token in std::mem::take(&mut this.ready) {
            match token {
                Token::Link(link) => {
                    if this.driver.service_link(&mut this.shell, link, now) == More::Yes {
                        again.push(token);
                    }
                }
                Token::Conversation(name) => this.driver.service_conversation(&mut this.shell, name, now),
            }
        }
        let more = this.driver.drain(&mut this.shell, now) == More::Yes || !again.is_empty();
        this.ready = again;
        this.driver.handle_timeout(&mut this.shell, now);
        let more = more || this.driver.drain(&mut this.shell, now) == More::Yes;
        let due = this.driver.poll_timeout();
        if let Some(at) = due
            && this.timer.is_none_or(|timer| at < timer)
        {
            this.timer = Some(at);
            self.world.borrow_mut().at(this.clock.when(at) * 1000, Event::Timer(index));
        }
        self.check(index);
        if self.watching {
            self.note_clients(index);
            self.check_neighbours(index);
            if !more {
                self.check_wakeups(index);
            }
        }
        self.take_notices(index);
        self.forget_dropped();
        more
    }

    /// What always holds.
    fn check(&mut self, index: NodeIndex) {
        let node = self.nodes[index].driver.node();
        let usage = node.usage();
        let spec = &self.nodes[index].spec;
        assert!(usage.cells_held <= usage.cells_reserved, "node {index}: {usage:?}");
        assert!(usage.cells_reserved <= spec.cells, "node {index}: {usage:?}");
        self.calls += 1;
        if self.calls.is_multiple_of(self.audit_stride)
            && let Err(wrong) = node.audit()
        {
            panic!("node {index}: {wrong}\n{}", self.describe());
        }
        let words = [
            5,
            index as u64,
            usage.circuits as u64,
            usage.cells_held as u64,
            usage.cells_reserved as u64,
            node.counters().forward,
            node.counters().backward,
        ];
        self.world.borrow_mut().trace(&words);
    }

    /// Streams that are gone need no calls.
    pub(super) fn forget_dropped(&mut self) {
        for (node, end) in self.world.borrow_mut().take_dropped() {
            self.nodes[node].tokens.remove(&end);
        }
    }

    fn take_notices(&mut self, index: NodeIndex) {
        if let Some(letters) = &mut self.nodes[index].shell.letters {
            self.mail.extend(letters.drain(..).map(|letter| (index, letter)));
        }
        for notice in std::mem::take(&mut self.nodes[index].shell.notices) {
            if self.verbose {
                self.print_notice(index, &notice);
            }
            match notice {
                Notice::Connected(name, _) | Notice::Receipt(name, _)
                    if self.talks[self.names[&(index, name)]].doubtful => {}
                Notice::Connected(name, reached) => {
                    let talk = self.names[&(index, name)];
                    let service = self.talks[talk].wish.service;
                    let right = if service { Reached::Service } else { Reached::Address(target_address(talk)) };
                    assert_eq!(reached, right);
                    assert_eq!(self.talks[talk].connected.replace(reached), None, "told twice");
                }
                Notice::Receipt(name, receipt) => {
                    let talk = self.names[&(index, name)];
                    assert!(self.talks[talk].receipt.replace(*receipt).is_none(), "told twice");
                }
                Notice::Over(name, outcome) => {
                    assert!(self.ended.insert((index, name)), "told twice");
                    // An exit's conversation may be over before its target was reached.
                    let Some(talk) = self.names.remove(&(index, name)) else { continue };
                    let talk = &mut self.talks[talk];
                    let place = if (talk.client, talk.name) == (index, name) {
                        &mut talk.outcome
                    } else {
                        &mut talk.exit_outcome
                    };
                    assert_eq!(place.replace(outcome), None, "told twice");
                }
            }
        }
    }
}

/// The address of a conversation's target.
fn target_address(talk: TalkIndex) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 1], 1 + (talk % 60_000) as u16))
}
