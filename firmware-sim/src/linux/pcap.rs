//! Captures for Wireshark: what crossed the device, in a file.

use core::fmt;
use std::{
    eprintln, format,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    vec::Vec,
};

use smoltcp::phy::PcapSink;

/// Room for a packet's header in the file and the longest frame, so that a capture allocates nothing while it runs.
const RECORD_LEN: usize = 16 + 2048;

/// Where `smoltcp::phy::PcapWriter` writes: a file, or nowhere.
///
/// Each packet reaches the system in one piece, so that a file can be read whenever the process ends. When the file cannot grow
/// any more (a full disk) the capture ends with one message and the node goes on.
pub struct Capture {
    /// `None`: nothing is captured, or not any more.
    output: Option<Output>,
    record: Vec<u8>,
}

struct Output {
    file: File,
    path: PathBuf,
    /// The length of the file up to the last whole packet.
    whole: u64,
}

impl Capture {
    /// No capture: costs next to nothing, so that there need not be two types of device.
    #[must_use]
    pub const fn off() -> Self {
        Self { output: None, record: Vec::new() }
    }

    /// A capture into this file, which is emptied first.
    ///
    /// # Errors
    ///
    /// The system's, with the path.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::create(path).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot write the capture {}: {error}", path.display()))
        })?;
        let output = Output { file, path: path.to_path_buf(), whole: 0 };
        Ok(Self { output: Some(output), record: Vec::with_capacity(RECORD_LEN) })
    }

    /// Whether packets are being written.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.output.is_some()
    }

    /// Hands what was collected to the system.
    fn write_out(&mut self) {
        let Some(output) = &mut self.output else { return };
        match output.file.write_all(&self.record) {
            Ok(()) => output.whole += self.record.len() as u64,
            Err(error) => {
                // Half a packet at the end would spoil the file. Where it cannot be cut (a pipe), there is nothing to do.
                let _ = output.file.set_len(output.whole);
                eprintln!("the capture {} ends here: {error}", output.path.display());
                self.output = None;
            }
        }
        self.record.clear();
    }
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Capture").field(&self.output.as_ref().map(|output| &output.path)).finish()
    }
}

impl PcapSink for Capture {
    fn write(&mut self, data: &[u8]) {
        if self.output.is_some() {
            self.record.extend_from_slice(data);
        }
    }

    /// Called behind each packet.
    fn flush(&mut self) {
        self.write_out();
    }

    /// The file's own header, which smoltcp does not flush: a capture without a packet is a capture as well.
    fn global_header(&mut self, link_type: smoltcp::phy::PcapLinkType) {
        const MAGIC: u32 = 0xa1b2_c3d4;
        const VERSION: (u16, u16) = (2, 4);
        self.write_u32(MAGIC);
        self.write_u16(VERSION.0);
        self.write_u16(VERSION.1);
        // The zone and the accuracy of times: UTC, not stated.
        self.write_u32(0);
        self.write_u32(0);
        self.write_u32(self.max_packet_size());
        self.write_u32(link_type.into());
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs, string::ToString, vec};

    use smoltcp::{phy::PcapLinkType, time::Instant};

    use super::*;

    fn u32_at(file: &[u8], place: usize) -> u32 {
        u32::from_ne_bytes(file[place..place + 4].try_into().unwrap())
    }

    fn scratch(name: &str) -> PathBuf {
        env::temp_dir().join(format!("bulbil-pcap-{name}-{}", std::process::id()))
    }

    #[test]
    fn the_file_can_be_read_after_every_packet() {
        let path = scratch("whole");
        let mut capture = Capture::create(&path).unwrap();
        capture.global_header(PcapLinkType::Ethernet);
        let header = fs::read(&path).unwrap();
        assert_eq!((header.len(), u32_at(&header, 0), u32_at(&header, 20)), (24, 0xa1b2_c3d4, 1));
        let mut expected = 24;
        for len in [14, 1514, 60] {
            capture.packet(Instant::from_micros(3_000_007), &vec![0xa5; len]);
            let file = fs::read(&path).unwrap();
            assert_eq!([0, 4, 8, 12].map(|field| u32_at(&file, expected + field)), [3, 7, len as u32, len as u32]);
            expected += 16 + len;
            assert_eq!(file.len(), expected);
        }
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_path_that_cannot_be_written_is_named() {
        let error = Capture::create(Path::new("/no such folder/x.pcap")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("/no such folder/x.pcap"), "{error}");
    }

    #[test]
    fn a_full_disk_ends_the_capture_and_nothing_else() {
        let mut capture = Capture::create(Path::new("/dev/full")).unwrap();
        assert!(capture.is_on());
        capture.global_header(PcapLinkType::Ethernet);
        assert!(!capture.is_on());
        capture.packet(Instant::ZERO, &[0; 100]);
        assert!(capture.record.is_empty());
    }

    #[test]
    fn without_a_file_nothing_is_kept() {
        let mut capture = Capture::off();
        capture.global_header(PcapLinkType::Ethernet);
        capture.packet(Instant::ZERO, &[0; 100]);
        assert_eq!((capture.is_on(), capture.record.capacity()), (false, 0));
    }
}
