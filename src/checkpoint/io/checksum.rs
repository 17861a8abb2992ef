//! CRC-32C of large contents.

use rayon::prelude::*;

/// Bytes that one thread takes at a time: enough to make putting results together cheap.
const PIECE: usize = 1 << 20;

/// CRC-32C of `bytes`, computed on the rayon pool that the caller is in, without one on the caller's thread.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    if bytes.len() <= PIECE || rayon::current_thread_index().is_none() {
        return crc32c::crc32c(bytes);
    }
    let pieces: Vec<(u32, usize)> =
        bytes.par_chunks(PIECE).map(|piece| (crc32c::crc32c(piece), piece.len())).collect();
    pieces.into_iter().fold(0, |whole, (piece, len)| crc32c::crc32c_combine(whole, piece, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_the_checksum_of_the_whole() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for len in [0, 1, PIECE, PIECE + 1, 3 * PIECE + 17] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
            assert_eq!(pool.install(|| crc32c(&bytes)), crc32c::crc32c(&bytes), "{len} bytes");
        }
    }
}
