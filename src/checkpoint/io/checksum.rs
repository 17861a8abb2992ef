//! CRC-32C of large contents.

use crate::runtime::parallel;

/// Bytes that one thread takes at a time: enough to make putting results together cheap.
const PIECE: usize = 1 << 20;

/// CRC-32C of `bytes`, computed with the threads of [`parallel::with_threads`].
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    if bytes.len() <= PIECE || parallel::thread_count() == 1 {
        return crc32c::crc32c(bytes);
    }
    let pieces: Vec<(u32, usize)> =
        parallel::map(bytes.chunks(PIECE), |piece| (crc32c::crc32c(piece), piece.len()));
    pieces.into_iter().fold(0, |whole, (piece, len)| crc32c::crc32c_combine(whole, piece, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_the_checksum_of_the_whole() {
        for len in [0, 1, PIECE, PIECE + 1, 3 * PIECE + 17] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
            let checksum = parallel::with_threads(3, || crc32c(&bytes));
            assert_eq!(checksum, crc32c::crc32c(&bytes), "{len} bytes");
        }
    }
}
