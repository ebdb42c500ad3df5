//! Answers as text for people.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;

use super::book::{Clock, NodeDetails, NodeLine, Role};
use super::report::Report;

/// Width of the column of names.
const NAMES: usize = 13;

fn roles(roles: &[Role]) -> String {
    match roles {
        [] => "none".into(),
        roles => roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(","),
    }
}

fn addresses(addresses: &[SocketAddr]) -> String {
    match addresses {
        [] => "nowhere".into(),
        addresses => addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// `seconds` in its two largest units.
fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// A moment, seen from `now`.
fn moment(at: u64, now: u64) -> String {
    match at.checked_sub(now) {
        Some(0) => "now".into(),
        Some(ahead) => format!("in {}", duration(ahead)),
        None => format!("{} ago", duration(now - at)),
    }
}

/// Bytes with their unit.
fn bytes(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.*} {}", usize::from(unit > 0), units.get(unit).copied().unwrap_or_default())
}

struct Named<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl Named<'_, '_> {
    fn line(&mut self, name: &str, value: fmt::Arguments<'_>) -> fmt::Result {
        writeln!(self.0, "{name:<NAMES$} {value}")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, links, circuits, cells, phonebook, refused, .. } = self;
        let mut out = Named(f);
        out.line("node", format_args!("{}", node.fingerprint))?;
        out.line("roles", format_args!("{}", roles(&node.roles)))?;
        out.line("listening", format_args!("{}", addresses(&node.listening)))?;
        if node.advertised != node.listening {
            out.line("advertised", format_args!("{}", addresses(&node.advertised)))?;
        }
        if !node.socks.is_empty() {
            out.line("socks", format_args!("{}", addresses(&node.socks)))?;
        }
        out.line("version", format_args!("{}, protocol {}", node.version, node.protocol))?;
        out.line("process", format_args!("{}, up {}", node.process, duration(node.uptime_seconds)))?;
        if let Some(resident) = self.resident_bytes {
            out.line("memory", format_args!("{} resident", bytes(resident as f64)))?;
        }
        out.line(
            "links",
            format_args!(
                "{} up ({} in, {} out), {} half open ({} in, {} out), {} closing; places {}",
                links.up_in + links.up_out,
                links.up_in,
                links.up_out,
                links.half_open_in + links.half_open_out,
                links.half_open_in,
                links.half_open_out,
                links.closing,
                links.total
            ),
        )?;
        let ended = links.ended;
        out.line(
            "links ended",
            format_args!(
                "{} closed, {} failed, {} handshake, {} wrong node, {} record, {} violation, {} stalled",
                ended.closed,
                ended.failed,
                ended.handshake,
                ended.wrong_node,
                ended.record,
                ended.violation,
                ended.stalled
            ),
        )?;
        out.line(
            "circuits",
            format_args!(
                "{} open of {}, {} of them its own of {}; {} opened for others, {} expired",
                circuits.open, circuits.total, circuits.own, circuits.own_total, circuits.opened, circuits.expired
            ),
        )?;
        out.line("cells", format_args!("{} held, {} promised, of {}", cells.held, cells.promised, cells.total))?;
        out.line("onions", format_args!("{} in work, of {}", self.onions.used, self.onions.total))?;
        if let Some(key) = &self.onion_key {
            let due = if key.rotation_due { "; to be replaced now" } else { "" };
            out.line(
                "onion key",
                format_args!(
                    "{}, {} old, has opened {} circuits of {} ({} by the one before){due}",
                    key.kind.name(),
                    duration(key.age_seconds),
                    key.replay.used,
                    key.replay.total,
                    key.replay_previous
                ),
            )?;
        }
        let (total, recent) = (self.traffic.total, self.traffic.recent);
        let a_second = |amount: u64| if recent.seconds > 0.0 { amount as f64 / recent.seconds } else { 0.0 };
        for (name, moved, cells, lately, cells_lately) in [
            ("traffic in", total.bytes_in, total.cells_in, recent.moved.bytes_in, recent.moved.cells_in),
            ("traffic out", total.bytes_out, total.cells_out, recent.moved.bytes_out, recent.moved.cells_out),
        ] {
            out.line(
                name,
                format_args!(
                    "{}, {cells} cells; last {:.0} s: {}/s, {:.0} cells/s",
                    bytes(moved as f64),
                    recent.seconds,
                    bytes(a_second(lately)),
                    a_second(cells_lately)
                ),
            )?;
        }
        out.line(
            "refused",
            format_args!(
                "{} busy, {} onions rejected, {} replayed, {} circuits garbled, {} late cells, {} violations",
                refused.busy,
                refused.onions_rejected,
                refused.onions_replayed,
                refused.circuits_garbled,
                refused.cells_late,
                refused.violations
            ),
        )?;
        out.line(
            "phonebook",
            format_args!(
                "{} tried, {} new, {} in dispute, {} pinned, {} expired; places {}",
                phonebook.tried,
                phonebook.new,
                phonebook.disputed,
                phonebook.pinned,
                phonebook.expired,
                phonebook.capacity
            ),
        )?;
        if let Some(exchanges) = &phonebook.exchanges {
            out.line(
                "exchanges",
                format_args!(
                    "{} asked ({} answered, {} failed), {} served, {} turned away; {} descriptors taken",
                    exchanges.asked,
                    exchanges.answered,
                    exchanges.failed,
                    exchanges.served,
                    exchanges.turned_away,
                    exchanges.taken
                ),
            )?;
            let reasons: Vec<_> = exchanges.refused.iter().filter(|(_, count)| **count > 0).collect();
            if !reasons.is_empty() {
                let reasons: Vec<_> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
                out.line("not taken", format_args!("{}", reasons.join(", ")))?;
            }
        }
        if let Some(tests) = phonebook.tests {
            out.line(
                "tests",
                format_args!("{} begun, {} answered, {} failed", tests.begun, tests.answered, tests.failed),
            )?;
        }
        match phonebook.clock {
            Clock::Unknown => out.line("clock", format_args!("too few others have said what time it is")),
            Clock::Agrees => out.line("clock", format_args!("agrees with other nodes")),
            Clock::Off { seconds, peers } => {
                let by = duration(seconds.unsigned_abs());
                let way = if seconds < 0 { "behind" } else { "ahead of" };
                out.line(
                    "clock",
                    format_args!("IN DOUBT: {by} {way} the median of {peers} other nodes; set this machine's clock"),
                )
            }
        }
    }
}

/// The phonebook, a line for each node, aligned, with a line that names the columns; nothing if it is empty.
#[must_use]
pub fn lines(nodes: &[NodeLine], now: u64) -> String {
    let mut rows = vec![
        ["FINGERPRINT", "ROLES", "ADDRESS", "SHELF", "FAILURES", "LAST MET", "VALID UNTIL", "ONION KEY"]
            .map(String::from),
    ];
    if nodes.is_empty() {
        return String::new();
    }
    for node in nodes {
        rows.push([
            node.fingerprint.to_string(),
            roles(&node.roles),
            node.address.to_string(),
            shelf(node),
            node.failures.to_string(),
            node.last_met.map_or_else(|| "never".into(), |at| moment(at, now)),
            moment(node.valid_until, now),
            node.onion_key.name().into(),
        ]);
    }
    let mut widths = [0; 8];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let line: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn shelf(node: &NodeLine) -> String {
    let mut text = String::from(node.shelf.name());
    for (is, word) in [(node.pinned, ",pinned"), (node.disputed, ",in-dispute")] {
        if is {
            text.push_str(word);
        }
    }
    text
}

/// One node, a line for each thing that is known of it.
#[must_use]
pub fn details(node: &NodeDetails, now: u64) -> String {
    let line = &node.line;
    let ports = if node.exit_ports.is_empty() { "none".into() } else { node.exit_ports.join(", ") };
    let rows = [
        ("node", line.fingerprint.to_string()),
        ("roles", roles(&line.roles)),
        ("addresses", addresses(&node.addresses)),
        ("exit ports", ports),
        ("shelf", shelf(line)),
        ("failures", line.failures.to_string()),
        ("last met", line.last_met.map_or_else(|| "never".into(), |at| moment(at, now))),
        ("sequence", node.sequence.to_string()),
        ("valid from", moment(node.valid_from, now)),
        ("valid until", moment(line.valid_until, now)),
        ("onion key", line.onion_key.name().into()),
        ("link key", node.link_key.clone()),
        ("protocol", node.protocol.to_string()),
    ];
    let mut text = String::new();
    for (name, value) in rows {
        let _never_fails = writeln!(text, "{name:<NAMES$} {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        let durations = [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7384, "2 h 3 min"), (190_000, "2 d 4 h")];
        for (seconds, text) in durations {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(moment(7, 7), "now");
        assert_eq!((moment(100, 40), moment(40, 100)), ("in 1 min 0 s".into(), "1 min 0 s ago".into()));
        let sizes = [(0.0, "0 B"), (1023.0, "1023 B"), (1536.0, "1.5 KiB"), (5e9, "4.7 GiB"), (1e17, "90949.5 TiB")];
        for (size, text) in sizes {
            assert_eq!(bytes(size), text);
        }
    }
}
