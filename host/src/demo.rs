//! `bulbil demo`: a network, a web server, and what can be done with them, each step shown with its times.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bulbil_core::wire::Target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cli::DemoArgs;
use crate::commands::Failure;
use crate::net::Network;
use crate::node::{HopInfo, OpenOptions, SendOptions};
use crate::shutdown::Shutdown;
use crate::target_server::TargetServer;

mod auth;

/// Most bytes of an answer that the demo takes.
const ANSWER_MAX: usize = 1 << 20;
/// Answers that are asked for on the circuit that is kept open.
const EVENTS: usize = 5;

fn milliseconds(span: Duration) -> String {
    format!("{:.2} ms", span.as_secs_f64() * 1000.0)
}

fn failed(step: &str, error: impl std::fmt::Display) -> Failure {
    Failure::Other(format!("{step}: {error}"))
}

/// Four nodes and a web server in one process, and a page fetched through them; then a message with a signed answer, and one with
/// many; at last a user's story at an authentication server.
///
/// # Errors
/// The first step that does not go as it should.
pub async fn run(_args: &DemoArgs) -> Result<(), Failure> {
    let begun = Instant::now();
    let network = Network::start().await?;
    let server = TargetServer::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let server = server.await.map_err(Failure::system("start the web server on loopback"))?;
    let address = server.local_addr().map_err(Failure::system("find the web server's address"))?;
    let stop = Shutdown::new();
    let serving = tokio::spawn(server.serve(stop.clone()));
    println!("A network in one process, ready in {}:", milliseconds(begun.elapsed()));
    for (number, node) in network.nodes.iter().enumerate() {
        let role = if number < 3 { "relay" } else { "exit " };
        println!("  {role}  {}  {}", listening(node), short(&node.fingerprint().to_string()));
    }
    println!("  web server at {address}, outside the network");

    let outcome = steps(&network, &Target::from(address)).await;
    stop.request();
    network.shutdown().await;
    let _panicked = serving.await;
    outcome
}

async fn steps(network: &Network, target: &Target) -> Result<(), Failure> {
    fetch(network, target, "1. A page, over a path whose links do not exist yet").await?;
    fetch(network, target, "2. The page again, on a new circuit over links that exist").await?;
    message(network, target).await?;
    events(network, target).await?;
    auth::scenario(network).await?;
    println!("\nAll steps went as they should.");
    Ok(())
}

fn listening(node: &crate::node::Node) -> String {
    node.local_addr().map_or_else(String::new, |address| address.to_string())
}

fn short(fingerprint: &str) -> String {
    format!("{}...", fingerprint.get(..16).unwrap_or(fingerprint))
}

fn print_path(path: &[HopInfo]) {
    for (number, hop) in path.iter().enumerate() {
        let part = match number {
            _ if number + 1 == path.len() => "removes the last layer, connects to the target and reads the request",
            0 => "knows us, and the next hop; removes one layer",
            _ => "knows the hop before and the next one; removes one layer",
        };
        println!("   hop {}  {}  {}  {part}", number + 1, hop.address, short(&hop.node.to_string()));
    }
}

async fn fetch(network: &Network, target: &Target, title: &str) -> Result<(), Failure> {
    println!("\n{title}");
    let before = Instant::now();
    let circuit = network.client.open(target.clone(), OpenOptions::default()).await;
    let mut circuit = circuit.map_err(|error| failed("opening a circuit", error))?;
    let launched = before.elapsed();
    let request = format!("GET / HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
    circuit.write_all(request.as_bytes()).await.map_err(|error| failed("sending the request", error))?;
    let mut page = vec![0; ANSWER_MAX];
    let mut len = circuit.read(&mut page).await.map_err(|error| failed("reading the page", error))?;
    let first_byte = before.elapsed();
    while len < page.len() {
        match circuit.read(&mut page[len..]).await.map_err(|error| failed("reading the page", error))? {
            0 => break,
            read => len += read,
        }
    }
    let whole = before.elapsed();
    print_path(circuit.path());
    let text = String::from_utf8_lossy(&page[..len]);
    let status = text.lines().next().unwrap_or_default().to_owned();
    println!("   {status}, {len} bytes");
    println!(
        "   onion built and sent after {}, first byte of the answer after {}, whole after {}",
        milliseconds(launched),
        milliseconds(first_byte),
        milliseconds(whole)
    );
    if status != "HTTP/1.1 200 OK" {
        return Err(failed("the page", "the answer is not the web server's"));
    }
    Ok(())
}

async fn message(network: &Network, target: &Target) -> Result<(), Failure> {
    println!("\n3. One message, request-response, with a signed answer; the path is forgotten afterwards");
    let text = "hello from the other side of an onion";
    let request = format!(
        "POST /echo HTTP/1.1\r\nHost: {target}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    );
    let options = SendOptions { keep_open: false, sign: true, ..SendOptions::default() };
    let before = Instant::now();
    let answers = network.client.send(target.clone(), request.as_bytes(), options).await;
    let mut answers = answers.map_err(|error| failed("sending the message", error))?;
    let answer = answers.whole(ANSWER_MAX).await.map_err(|error| failed("reading the answer", error))?;
    let took = before.elapsed();
    let Some(receipt) = answers.receipt() else { return Err(failed("the answer", "it is not signed")) };
    if !answer.ends_with(text.as_bytes()) {
        return Err(failed("the answer", "it is not what was sent"));
    }
    println!("   answered with {} bytes after {}", answer.len(), milliseconds(took));
    println!(
        "   signed by exit {} at Unix time {}; the signature over target, request and answer is good",
        short(&receipt.exit.to_string()),
        receipt.time.0
    );
    Ok(())
}

async fn events(network: &Network, target: &Target) -> Result<(), Failure> {
    println!("\n4. One request, many answers, on a circuit that is kept open");
    let request =
        format!("GET /events?count={EVENTS}&interval=20 HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
    let options = SendOptions { keep_open: true, sign: false, ..SendOptions::default() };
    let before = Instant::now();
    let answers = network.client.send(target.clone(), request.as_bytes(), options).await;
    let mut answers = answers.map_err(|error| failed("sending the request", error))?;
    let mut pieces = 0;
    let mut body = Vec::new();
    while let Some(piece) = answers.next().await.map_err(|error| failed("reading an answer", error))? {
        pieces += 1;
        println!("   after {}: {} bytes", milliseconds(before.elapsed()), piece.len());
        body.extend_from_slice(&piece);
    }
    // Answers that come close together may be read in one piece; what counts is that all of them came.
    let events = String::from_utf8_lossy(&body).lines().filter(|line| line.starts_with("line ")).count();
    println!("   {events} answers in {pieces} pieces");
    if events != EVENTS {
        return Err(failed("the answers", format_args!("{events} came, {EVENTS} were asked for")));
    }
    Ok(())
}
