//! Large pages, and arrays whose pages lie in a file.

use std::io::{self, Write};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::path::Path;

use memmap2::MmapMut;

/// Asks for large pages where the memory of an empty vector is large: with small ones half the time of a sort goes into
/// the first touch of its buffers.
pub(crate) fn prefer_large_pages<T>(memory: &mut Vec<T>) {
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        use std::ffi::{c_int, c_void};

        unsafe extern "C" {
            fn madvise(start: *mut c_void, length: usize, advice: c_int) -> c_int;
        }
        const HUGEPAGE: c_int = 14;
        const PAGE: usize = 1 << 12;
        let bytes = memory.capacity() * size_of::<T>();
        if bytes >= LARGE {
            let start = memory.as_mut_ptr().cast::<u8>();
            let skipped = start.align_offset(PAGE).min(bytes);
            // SAFETY: the range lies inside what the vector allocated, and the advice changes the contents of no page.
            // Where it is refused, small pages are what there is: that is no error.
            unsafe { madvise(start.add(skipped).cast(), bytes - skipped, HUGEPAGE) };
        }
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = memory;
}

/// Bytes from which large pages are worth a call, as in numpy.
#[cfg(all(target_os = "linux", not(miri)))]
const LARGE: usize = 1 << 22;

/// A number of which every pattern of bits is one.
pub(crate) trait Number: Copy + private::Sealed {
    /// Its bytes as they lie in memory.
    fn bytes(self) -> Vec<u8>;
}

mod private {
    pub(crate) trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for u64 {}
}

impl Number for f32 {
    fn bytes(self) -> Vec<u8> {
        self.to_ne_bytes().to_vec()
    }
}

impl Number for u64 {
    fn bytes(self) -> Vec<u8> {
        self.to_ne_bytes().to_vec()
    }
}

/// Numbers in a temporary file without a name: the system may move their pages out of memory, and the file is gone when
/// this is, however the process ends.
#[derive(Debug)]
pub(crate) struct Mapped<T> {
    map: MmapMut,
    of: PhantomData<T>,
}

/// Bytes written at once.
const CHUNK: usize = 1 << 20;

impl<T: Number> Mapped<T> {
    /// `n` times `value`, in a file of the folder.
    ///
    /// # Errors
    ///
    /// There is no room, or the folder cannot be written to. The whole file is written here: on a full disk that is an
    /// error, where the write to a map would end the process.
    pub(crate) fn filled(folder: &Path, n: usize, value: T) -> io::Result<Self> {
        let mut file = tempfile::tempfile_in(folder)?;
        let mut left = n.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::FileTooLarge)?;
        let chunk = value.bytes().repeat(CHUNK / size_of::<T>());
        while left > 0 {
            let now = left.min(chunk.len());
            file.write_all(&chunk[..now])?;
            left -= now;
        }
        // SAFETY: a map must not change behind its owner's back. This file has no name and its only handle ends here, so
        // no other process can write to it or cut it short; a child of a fork can, and `Column` refuses to write there.
        let map = unsafe { MmapMut::map_mut(&file)? };
        Ok(Self { map, of: PhantomData })
    }
}

impl<T: Number> Deref for Mapped<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: a map starts at the start of a page, which suits any number; it holds whole ones, and every pattern of
        // bits is one. It lives as long as the borrow.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.map.len() / size_of::<T>()) }
    }
}

impl<T: Number> DerefMut for Mapped<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and the borrow is the only one.
        unsafe {
            std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.map.len() / size_of::<T>())
        }
    }
}

#[cfg(test)]
#[cfg(not(miri))] // which maps no files
mod tests {
    use super::*;

    #[test]
    fn a_mapped_array_is_filled_and_keeps_what_is_written() {
        let folder = tempfile::tempdir().unwrap();
        for n in [1, 1000, CHUNK / 4 + 3] {
            let mut values = Mapped::filled(folder.path(), n, 1.5f32).unwrap();
            assert_eq!(*values, vec![1.5; n]);
            values[n - 1] = f32::NAN;
            assert!(values[n - 1].is_nan() && values[..n - 1].iter().all(|&x| x == 1.5));
        }
        let words = Mapped::filled(folder.path(), 3, u64::MAX).unwrap();
        assert_eq!(*words, [u64::MAX; 3]);
        assert_eq!(folder.path().read_dir().unwrap().count(), 0, "files have no names");
    }

    #[test]
    fn a_folder_that_is_missing_or_a_length_beyond_any_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Mapped::filled(&folder.path().join("none"), 1, 0.0f32).is_err());
        assert!(Mapped::filled(folder.path(), usize::MAX / 2, 0.0f32).is_err());
    }
}
