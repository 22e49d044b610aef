//! Header blocks: names and values, compressed by one zlib stream per direction (draft 3.1, section 2.6.10).

use std::sync::LazyLock;

use bytes::{Buf as _, BufMut as _};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Largest block, compressed or not, in bytes: a stream is described by four short headers.
pub const MAX_BLOCK: usize = 16 * 1024;

/// Words of the dictionary that both sides know, each preceded by its length.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding \
    content-language content-length content-location content-md5 content-range content-type date etag expect \
    expires from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified \
    location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te \
    trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK \
    version HTTP/1.1 url public set-cookie keep-alive origin";

/// The rest of the dictionary.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
    403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
    text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split(' ').map(|word| word.replace('_', " ")) {
        bytes.put_u32(u32::try_from(word.len()).unwrap_or_default());
        bytes.put_slice(word.as_bytes());
    }
    bytes.put_slice(TAIL.as_bytes());
    bytes
});

/// A block that cannot be read; everything after it is lost as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed headers")]
pub struct Malformed;

/// Names, in lower case, with their values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of a header whose name is given in lower case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name)?;
        Some(&found.1)
    }

    fn decode(mut block: &[u8]) -> Result<Self, Malformed> {
        let count = take_u32(&mut block)?;
        let mut headers = Vec::new();
        for _ in 0..count {
            let name = take_text(&mut block)?.to_ascii_lowercase();
            headers.push((name, take_text(&mut block)?));
        }
        Ok(Self(headers))
    }
}

fn take_u32(block: &mut &[u8]) -> Result<u32, Malformed> {
    block.try_get_u32().map_err(|_| Malformed)
}

fn take_text(block: &mut &[u8]) -> Result<String, Malformed> {
    let length = take_u32(block)? as usize;
    let (text, rest) = block.split_at_checked(length).ok_or(Malformed)?;
    *block = rest;
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// The client's direction.
#[derive(Debug)]
pub struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflater {
    /// Reads one block.
    ///
    /// # Errors
    /// It is no continuation of the blocks before, or larger than [`MAX_BLOCK`] when inflated.
    pub fn read(&mut self, block: &[u8]) -> Result<Headers, Malformed> {
        Headers::decode(&self.inflate(block)?)
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut out = vec![0; MAX_BLOCK];
        let (begun_in, begun_out) = (self.0.total_in(), self.0.total_out());
        loop {
            let used = usize::try_from(self.0.total_in() - begun_in).map_err(|_| Malformed)?;
            let made = usize::try_from(self.0.total_out() - begun_out).map_err(|_| Malformed)?;
            let done = self
                .0
                .decompress(&block[used..], &mut out[made..], FlushDecompress::Sync);
            match done {
                Err(e) if e.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&DICTIONARY).map_err(|_| Malformed)?;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(Malformed),
                Ok(Status::Ok | Status::BufError) => {
                    let length = usize::try_from(self.0.total_out() - begun_out).map_err(|_| Malformed)?;
                    if length == out.len() {
                        return Err(Malformed);
                    }
                    if self.0.total_in() - begun_in == block.len() as u64 {
                        out.truncate(length);
                        return Ok(out);
                    }
                    if length == made {
                        return Err(Malformed);
                    }
                }
            }
        }
    }
}

/// The server's direction.
#[derive(Debug)]
pub struct Deflater(Compress);

impl Default for Deflater {
    fn default() -> Self {
        let mut compress = Compress::new(Compression::fast(), true);
        // Only a stream that has begun refuses a dictionary.
        let _ = compress.set_dictionary(&DICTIONARY);
        Self(compress)
    }
}

impl Deflater {
    /// A block without headers: what a server of Kubernetes answers to a new stream.
    #[must_use]
    pub fn empty_block(&mut self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        // Four bytes and a flush fit into the room that is there.
        let _ = self
            .0
            .compress_vec(&0u32.to_be_bytes(), &mut out, FlushCompress::Sync);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adler32(bytes: &[u8]) -> u32 {
        let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65_521;
            (a, (a + b) % 65_521)
        });
        b << 16 | a
    }

    fn block(headers: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = u32::try_from(headers.len()).unwrap().to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            bytes.put_u32(u32::try_from(text.len()).unwrap());
            bytes.put_slice(text.as_bytes());
        }
        bytes
    }

    fn deflate(to: &mut Deflater, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 * 1024);
        to.0.compress_vec(bytes, &mut out, FlushCompress::Sync).unwrap();
        out
    }

    #[test]
    fn the_dictionary_is_the_one_of_the_draft() {
        assert_eq!((DICTIONARY.len(), adler32(&DICTIONARY)), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn blocks_continue_one_stream() {
        let (mut to, mut from) = (Deflater::default(), Inflater::default());
        for id in ["0", "1", "2"] {
            let sent = block(&[("Streamtype", "data"), ("port", "80"), ("requestid", id)]);
            let read = from.read(&deflate(&mut to, &sent)).unwrap();
            assert_eq!(read.get("streamtype"), Some("data"));
            assert_eq!(read.get("requestid"), Some(id));
            assert_eq!(read.get("host"), None);
        }
        assert_eq!(from.read(&to.empty_block()), Ok(Headers::default()));
    }

    #[test]
    fn hostile_blocks_are_refused() {
        let bomb = vec![0; 1 << 20];
        let lies = [0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, b'a'];
        let endless = u32::MAX.to_be_bytes();
        for bytes in [&bomb[..], &lies, &endless, &[0, 0]] {
            let sent = deflate(&mut Deflater::default(), bytes);
            assert_eq!(Inflater::default().read(&sent), Err(Malformed));
        }
        assert_eq!(Inflater::default().read(b"no zlib at all"), Err(Malformed));
        assert_eq!(Inflater::default().read(b""), Err(Malformed));
    }
}
