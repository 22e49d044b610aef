//! From downloaded chunks to the uncompressed tar stream, on a blocking thread.
//!
//! Owns the hand-over from the async download (a bounded channel, so a slow disk slows the network and memory stays
//! bounded) and the choice of decompressor. End of data is an explicit message: a channel that just closes is a
//! cancelled or failed download and never looks like the end of an archive.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};
use flate2::bufread::MultiGzDecoder;
use tokio::sync::mpsc;

use crate::error::Error;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// A zstd "skippable frame" starts 5X 2A 4D 18 (RFC 8878 section 3.1.2); zstd:chunked and estargz put them in front.
const ZSTD_SKIP: &[u8] = &[0x2a, 0x4d, 0x18];
/// Window of at most 128 MiB, the default bound of the zstd tools.
const ZSTD_WINDOW_LOG: u32 = 27;

/// One message of a download.
#[derive(Debug)]
pub(crate) enum Chunk {
    /// The next bytes of the blob.
    Data(Bytes),
    /// The blob is complete and has the right size and digest.
    End,
}

/// Reading end of a download.
pub(crate) struct ChunkReader {
    chunks: mpsc::Receiver<Chunk>,
    current: Bytes,
    ended: bool,
}

impl ChunkReader {
    pub(crate) fn new(chunks: mpsc::Receiver<Chunk>) -> ChunkReader {
        ChunkReader {
            chunks,
            current: Bytes::new(),
            ended: false,
        }
    }
}

impl BufRead for ChunkReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            match self.chunks.blocking_recv() {
                Some(Chunk::Data(bytes)) => self.current = bytes,
                Some(Chunk::End) => self.ended = true,
                None => return Err(io::Error::other(Error::Cancelled)),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, n: usize) {
        self.current.advance(n);
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

/// The uncompressed stream of a layer blob.
///
/// The compression is told by the first bytes, as containerd and docker do, because published media types are
/// sometimes wrong; the diff id decides whether the result is right. Once the stream ends, the rest of the blob is
/// read too, so that success implies a complete and verified download.
pub(crate) enum Decoder<R: BufRead> {
    /// Not looked at yet.
    Start(Option<R>),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(zstd::stream::read::Decoder<'static, R>),
    Plain(R),
}

impl<R: BufRead> Decoder<R> {
    pub(crate) fn new(source: R) -> Self {
        Decoder::Start(Some(source))
    }

    fn open(mut source: R) -> io::Result<Self> {
        let head = source.fill_buf()?;
        if head.starts_with(GZIP) {
            return Ok(Decoder::Gzip(Box::new(MultiGzDecoder::new(source))));
        }
        if head.starts_with(ZSTD) || (head.len() > 4 && head[0] & 0xf0 == 0x50 && &head[1..4] == ZSTD_SKIP) {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            return Ok(Decoder::Zstd(decoder));
        }
        Ok(Decoder::Plain(source))
    }

    /// After the end of the stream: makes sure that the blob has ended, too.
    fn drained(&mut self) -> io::Result<()> {
        let rest = match self {
            Decoder::Start(_) | Decoder::Plain(_) => return Ok(()),
            Decoder::Gzip(d) => d.get_mut().fill_buf()?,
            Decoder::Zstd(d) => d.get_mut().fill_buf()?,
        };
        if rest.is_empty() {
            Ok(())
        } else {
            Err(io::Error::other("data after the compressed stream"))
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Decoder::Start(source) = self
            && let Some(source) = source.take()
        {
            *self = Decoder::open(source)?;
        }
        let n = match self {
            Decoder::Start(_) => 0,
            Decoder::Gzip(d) => d.read(buf)?,
            Decoder::Zstd(d) => d.read(buf)?,
            Decoder::Plain(d) => d.read(buf)?,
        };
        if n == 0 && !buf.is_empty() {
            self.drained()?;
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        e.write_all(data).unwrap();
        e.finish().unwrap()
    }

    fn decode(data: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decoder::new(io::BufReader::with_capacity(7, data)).read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn tells_compressions_apart_and_reads_all_members() {
        let body = b"some bytes, some bytes".repeat(50);
        let twice = [gzip(&body), gzip(b"more")].concat();
        let zst = zstd::stream::encode_all(&body[..], 3).unwrap();
        let zst_skip = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zst].concat();
        let zst_twice = [&zst[..], &zst].concat();
        assert_eq!(decode(&gzip(&body)).unwrap(), body);
        assert_eq!(decode(&twice).unwrap(), [&body[..], b"more"].concat());
        assert_eq!(decode(&zst).unwrap(), body);
        assert_eq!(decode(&zst_skip).unwrap(), body);
        assert_eq!(decode(&zst_twice).unwrap(), body.repeat(2));
        assert_eq!(decode(&body).unwrap(), body);
        assert_eq!(decode(b"").unwrap(), b"");
    }

    #[test]
    fn broken_streams_are_errors() {
        let good = gzip(&b"x".repeat(5000));
        let zst = zstd::stream::encode_all(&b"x".repeat(5000)[..], 3).unwrap();
        let mut wrong_crc = good.clone();
        let n = wrong_crc.len();
        wrong_crc[n - 5] ^= 1;
        let cases = [
            good[..n - 1].to_vec(),
            good[..n / 2].to_vec(),
            [&good[..], b"garbage!"].concat(),
            [&zst[..], b"garbage!"].concat(),
            wrong_crc,
            zst[..zst.len() - 1].to_vec(),
        ];
        for (i, case) in cases.iter().enumerate() {
            assert!(decode(case).is_err(), "case {i}");
        }
    }

    #[test]
    fn a_closed_channel_is_not_the_end() {
        let (tx, rx) = mpsc::channel(4);
        tx.blocking_send(Chunk::Data(Bytes::from_static(b"abc"))).unwrap();
        drop(tx);
        let mut out = Vec::new();
        let error = Decoder::new(ChunkReader::new(rx))
            .read_to_end(&mut out)
            .unwrap_err();
        assert!(matches!(error.downcast::<Error>(), Ok(Error::Cancelled)));
        let (tx, rx) = mpsc::channel(4);
        tx.blocking_send(Chunk::Data(Bytes::from_static(b"abc"))).unwrap();
        tx.blocking_send(Chunk::End).unwrap();
        assert_eq!(ChunkReader::new(rx).read_to_end(&mut Vec::new()).unwrap(), 3);
    }
}
