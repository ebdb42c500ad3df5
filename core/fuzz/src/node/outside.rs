//! What happens at a node's conversations: the targets of its exit, and applications that open circuits of its own.

use bulbil_core::crypto::onion::{HopKeys, ONION_LEN};
use bulbil_core::node::{Ask, OpenRefused, Opening, Output};
use bulbil_core::wire::message::BeginOptions;
use bulbil_core::wire::{EndReason, NodeId, Service, Target, UnixTime};

use super::super::script::Script;
use super::peer::seeds;
use super::{Asked, Heard, World, address};

/// A conversation at the exit, by the circuit that its target names.
#[derive(Default)]
pub(super) struct Conversation {
    pub(super) circuit: Option<(u16, u32)>,
    pub(super) received: Vec<u8>,
}

impl World<'_> {
    /// The outside does something.
    pub(super) fn talk(&mut self, script: &mut Script<'_>) -> Option<()> {
        if let Some(name) = self.node.poll_conversation()
            && !self.conversations.iter().any(|(known, _)| *known == name)
            && self.node.knows(name)
        {
            self.conversations.push((name, Conversation::default()));
        }
        let (at, choice, len) = (usize::from(script.byte()?), script.byte()?, usize::from(script.word()? % 2000));
        if self.conversations.is_empty() {
            return Some(());
        }
        let at = at % self.conversations.len();
        let (name, conversation) = &mut self.conversations[at];
        let name = *name;
        let exit = self.node.config().exit;
        let asked = self.model.ask(name);
        let ask = self.node.poll_ask(name);
        let asks = match ask {
            Some(Ask::Connect(_)) => Asked::Connect,
            Some(Ask::Sign(..)) => Asked::Sign,
            None => Asked::Nothing,
        };
        assert_eq!(asked, asks, "what the node asks: model, node");
        match ask {
            Some(Ask::Connect(Target::Tcp(bulbil_core::wire::Host::Ip(std::net::IpAddr::V4(ip)), _))) => {
                assert!(exit, "a target behind a node that is no exit");
                let [_, high, low, id] = ip.octets();
                conversation.circuit = Some((u16::from_be_bytes([high, low]), u32::from(id)));
                match choice {
                    0..=31 => {
                        self.node.handle_failed(name, EndReason::Refused, self.now);
                        self.model.failed(name);
                    }
                    32..=47 => {}
                    _ => {
                        self.node.handle_connected(name, address(5), self.now);
                        self.model.reached(name);
                    }
                }
                return Some(());
            }
            Some(Ask::Connect(Target::Service(Service::Phonebook))) => {
                conversation.circuit = self.service;
                match choice {
                    0..=31 => {
                        self.node.handle_failed(name, EndReason::NoService, self.now);
                        self.model.failed(name);
                    }
                    32..=47 => {}
                    _ => {
                        self.node.handle_served(name, self.now);
                        self.model.reached(name);
                    }
                }
                return Some(());
            }
            Some(Ask::Connect(_)) => panic!("a target that nobody named"),
            Some(Ask::Sign(..)) => {
                self.node.handle_signed(name, UnixTime(7), &[3; 256], self.now);
                self.model.signed(name);
                return Some(());
            }
            None => {}
        }
        match choice {
            0..=95 => {
                let room = self.node.input_room(name);
                let answers = conversation.circuit.map(|circuit| self.answers.entry(circuit).or_default());
                let before = answers.as_ref().map_or(0, |answers| answers.len());
                let bytes = vec![before as u8 ^ choice; len];
                let taken = self.node.handle_input(name, &bytes, self.now);
                assert_eq!(taken, room.min(len));
                assert_eq!(self.model.input(name, len), taken, "bytes that find room: model, node");
                if let Some(answers) = answers {
                    answers.extend_from_slice(&bytes[..taken]);
                }
            }
            96..=103 => {
                self.node.handle_input_finished(name, self.now);
                self.model.input_finished(name);
            }
            104..=111 => {
                self.node.close_conversation(name, choice & 1 == 0, self.now);
                self.model.let_go(name, choice & 1 == 0);
            }
            112..=115 => {
                self.node.handle_failed(name, EndReason::Reset, self.now);
                self.model.failed(name);
            }
            _ => {
                self.output(at, len, usize::from(choice & 0x0f));
            }
        }
        Some(())
    }

    /// Takes output of a conversation, of which the last few bytes may stay; whether the conversation goes on.
    pub(super) fn output(&mut self, at: usize, len: usize, stay: usize) -> bool {
        let (name, conversation) = &mut self.conversations[at];
        let mut buffer = vec![0; len];
        let output = self.node.poll_output(*name, &mut buffer, self.now);
        assert_eq!(self.model.output(*name, len), Heard::from(output), "what the outside hears: model, node");
        match output {
            Output::Nothing | Output::Finish => true,
            Output::Bytes(count) => {
                let written = count.saturating_sub(stay);
                conversation.received.extend_from_slice(&buffer[..written]);
                self.node.handle_written(*name, written, self.now);
                self.model.written(*name, written);
                if let Some(circuit) = conversation.circuit {
                    let received = conversation.received.clone();
                    let history = self.history.get(&circuit).cloned();
                    let said = self.by_number(circuit).map(|circuit| circuit.said.clone()).or(history);
                    // A target does not tell greater ids apart.
                    if circuit.1 < 255 {
                        assert!(said.is_some_and(|said| said.starts_with(&received)), "the target got something else");
                    }
                }
                true
            }
            Output::Over(_) => {
                assert!(!self.node.knows(*name));
                self.conversations.remove(at);
                false
            }
        }
    }

    /// Opens a circuit of the node's own.
    pub(super) fn open_own(&mut self, script: &mut Script<'_>) -> Option<()> {
        let choice = script.byte()?;
        let hops = usize::from(choice % 5);
        let [forward, backward] = seeds((u16::MAX, u32::from(choice)));
        let keys = |_| HopKeys { forward: (*forward.as_bytes()).into(), backward: (*backward.as_bytes()).into() };
        let keys: Vec<_> = (0..hops).map(keys).collect();
        let to = 2 + choice % 3;
        let target = if choice & 0x20 == 0 { Target::from(address(6)) } else { Target::Service(Service::Phonebook) };
        let opening = Opening {
            node: NodeId([to; 32]),
            address: address(to),
            onion: &[0x77; ONION_LEN],
            keys: &keys,
            target: &target,
            options: BeginOptions { sign: choice & 0x40 != 0, once: choice & 0x80 != 0 },
            first: script.bytes(8),
        };
        let before = self.node.usage();
        let opened = self.node.open(&opening, self.now);
        self.model.opened(opened.map_err(|refused| refused == OpenRefused::Busy), hops, to, &self.node);
        match opened {
            Ok(name) => self.conversations.push((name, Conversation::default())),
            Err(_) => assert_eq!(self.node.usage(), before, "a refused circuit left something"),
        }
        Some(())
    }
}
