//! A worker: a process that does what the host asks of it, one thing after the other, and holds the
//! resulting files, mappings and threads until it ends.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::{self, File},
    io::Read,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    time::Duration,
};

use agent_protocol::{
    Accessor, Action, Failure, FileId, FrameReader, IoctlReply, MAX_DATA, OpenFlags, Value,
    write_frame,
};
use rustix::fs::{Mode, OFlags};

use crate::{
    access, event_fd, fault,
    hammer::Hammer,
    kernel_log,
    mapping::Mapping,
    modules,
    polling::Polling,
    sys,
    writing::{Writing, write_file},
};

/// What a worker holds.
#[derive(Default)]
pub struct Worker {
    files: BTreeMap<FileId, File>,
    mappings: BTreeMap<u64, Mapping>,
    hammer: Option<Hammer>,
    polling: Option<Polling>,
    writing: Option<Writing>,
}

/// Serves process 1 over a socket until it closes it. Faults are reported to the pipe.
pub fn run(socket: UnixStream, faults: OwnedFd) -> ! {
    let mut worker = Worker::default();
    if fault::report_to(faults).is_ok() {
        let mut actions = FrameReader::new(&socket);
        while let Ok(action) = actions.read() {
            if write_frame(&socket, &worker.perform(action)).is_err() {
                break;
            }
        }
    }
    sys::exit(1)
}

impl Worker {
    fn perform(&mut self, action: Action) -> Result<Value, Failure> {
        Ok(match action {
            Action::Open { path, flags } => Value::Word(self.open(&path, flags)?),
            Action::Close(file) => {
                self.files.remove(&file).ok_or_else(|| no_file(file))?;
                Value::Done
            }
            Action::ReadAt { file, offset, length } => {
                Value::Bytes(read_at(self.file(file)?, offset, length)?)
            }
            Action::WriteAt { file, offset, data } => {
                Value::Word(self.file(file)?.write_at(&data, offset)? as u64)
            }
            Action::ReadInto { file, offset, mapping, at, length } => {
                let (file, mapping) = (self.file(file)?, self.mapping(mapping)?);
                Value::Word(mapping.read_from(file.as_fd(), offset, at, length)?)
            }
            Action::Ioctl { file, request, argument } => {
                Value::Word(sys::ioctl(self.file(file)?.as_fd(), request, argument)?)
            }
            Action::Exchange { file, request, mut data } => {
                let number = sys::exchange(self.file(file)?.as_fd(), request, &mut data)?;
                Value::Reply(IoctlReply { number, data })
            }
            Action::Adopt(descriptor) => {
                if self.files.contains_key(&FileId(descriptor)) {
                    return Err(refused("this process keeps that descriptor already"));
                }
                Value::Word(self.keep(sys::adopt(descriptor)?.into()))
            }
            Action::Map { file, offset, length, protection, sharing } => {
                let file = file.map(|file| self.file(file)).transpose()?;
                let file: Option<BorrowedFd<'_>> = file.map(AsFd::as_fd);
                let mapping = Mapping::new(file, offset, length, protection, sharing)?;
                let address = mapping.address();
                self.mappings.insert(address, mapping);
                Value::Word(address)
            }
            Action::Unmap(address) => {
                self.mappings.remove(&address).ok_or_else(|| no_mapping(address))?.unmap()?;
                Value::Done
            }
            Action::Peek { mapping, offset, width, accessor } => {
                let cell = self.mapping(mapping)?.cell(offset, width)?;
                Value::Word(attempt(accessor, || cell.load())?)
            }
            Action::Poke { mapping, offset, width, value, accessor } => {
                let cell = self.mapping(mapping)?.cell(offset, width)?;
                attempt(accessor, || {
                    cell.store(value);
                    0
                })?;
                Value::Done
            }
            Action::Fill { mapping, seed } => {
                self.mapping(mapping)?.fill(seed);
                Value::Done
            }
            Action::Verify { mapping, seed } => Value::Pattern(self.mapping(mapping)?.verify(seed)),
            Action::StartHammer { threads, bytes } => {
                if self.hammer.is_some() {
                    return Err(refused("this process has a hammer already"));
                }
                self.hammer = Some(Hammer::start(threads, bytes)?);
                Value::Done
            }
            Action::StopHammer => {
                let hammer =
                    self.hammer.take().ok_or_else(|| refused("this process has no hammer"))?;
                Value::Hammer(hammer.stop()?)
            }
            Action::StartPolling { mapping, offset, width } => {
                if self.polling.is_some() {
                    return Err(refused("a child of this process polls already"));
                }
                let cell = self.mapping(mapping)?.cell(offset, width)?;
                self.polling = Some(Polling::start(cell)?);
                Value::Done
            }
            Action::StopPolling => {
                let polling =
                    self.polling.take().ok_or_else(|| refused("no child of this process polls"))?;
                Value::Polling(polling.stop()?)
            }
            Action::CreateEventFd => Value::Word(self.keep(event_fd::create()?)),
            Action::Signal(file) => {
                event_fd::signal(self.file(file)?)?;
                Value::Done
            }
            Action::TakeEvents { file, milliseconds } => {
                Value::Word(event_fd::take(self.file(file)?, milliseconds)?)
            }
            Action::ReadFile(path) => Value::Bytes(read_file(&path)?),
            Action::WriteFile { path, data } => Value::Word(write_file(&path, &data)?),
            Action::StartWrite { path, data } => {
                if self.writing.is_some() {
                    return Err(refused("this process is writing already"));
                }
                self.writing = Some(Writing::start(path, data)?);
                Value::Done
            }
            Action::FinishWrite { milliseconds } => {
                let writing =
                    self.writing.as_ref().ok_or_else(|| refused("this process is not writing"))?;
                let written = writing.wait(Duration::from_millis(milliseconds.into()));
                if written.is_some() {
                    self.writing = None;
                }
                Value::Word(written.transpose()?.unwrap_or(0))
            }
            Action::ListDirectory(path) => Value::Names(list_directory(&path)?),
            Action::LoadModule { name, parameters } => {
                modules::load(&name, &parameters)?;
                Value::Done
            }
            Action::UnloadModule(name) => {
                modules::unload(&name)?;
                Value::Done
            }
            Action::LoadCrashKernel { kernel, initramfs, command_line } => {
                let (kernel, initramfs) = (File::open(kernel)?, File::open(initramfs)?);
                let command_line =
                    CString::new(command_line).map_err(|error| refused(&error.to_string()))?;
                sys::load_crash_kernel(kernel.as_fd(), initramfs.as_fd(), &command_line)?;
                Value::Done
            }
            Action::ReadLog { from } => Value::Bytes(kernel_log::read(from)?),
            Action::LogEnd => Value::Word(kernel_log::end()?),
            Action::Sync => {
                rustix::fs::sync();
                Value::Done
            }
        })
    }

    fn open(&mut self, path: &str, flags: OpenFlags) -> Result<u64, Failure> {
        let flags = OFlags::from_bits_retain(flags.0) | OFlags::CLOEXEC | OFlags::NOCTTY;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::open(path, flags, mode).map_err(std::io::Error::from)?;
        Ok(self.keep(file.into()))
    }

    fn keep(&mut self, file: File) -> u64 {
        let number = file.as_raw_fd() as u32;
        self.files.insert(FileId(number), file);
        number.into()
    }

    fn file(&self, file: FileId) -> Result<&File, Failure> {
        self.files.get(&file).ok_or_else(|| no_file(file))
    }

    fn mapping(&self, address: u64) -> Result<&Mapping, Failure> {
        self.mappings.get(&address).ok_or_else(|| no_mapping(address))
    }
}

fn attempt(accessor: Accessor, access: impl FnOnce() -> u64) -> Result<u64, Failure> {
    match accessor {
        Accessor::Child => access::in_child(access),
        Accessor::Process => Ok(access()),
    }
}

fn read_at(file: &File, offset: u64, length: u32) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; carriable(length as usize)?];
    let count = file.read_at(&mut bytes, offset)?;
    bytes.truncate(count);
    Ok(bytes)
}

/// In large reads: some files of the kernel refuse small ones.
fn read_file(path: &str) -> Result<Vec<u8>, Failure> {
    let mut file = File::open(path)?;
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(bytes),
            count => bytes.extend_from_slice(&chunk[..count]),
        }
        carriable(bytes.len())?;
    }
}

fn list_directory(path: &str) -> std::io::Result<Vec<String>> {
    let name =
        |entry: std::io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into());
    let mut names = fs::read_dir(path)?.map(name).collect::<std::io::Result<Vec<String>>>()?;
    names.sort();
    Ok(names)
}

fn carriable(length: usize) -> Result<usize, Failure> {
    if length > MAX_DATA {
        return Err(refused(&format!("{length} bytes are above the limit of {MAX_DATA}")));
    }
    Ok(length)
}

fn refused(why: &str) -> Failure {
    Failure::Refused(why.to_owned())
}

fn no_file(file: FileId) -> Failure {
    refused(&format!("this process has no {file} open"))
}

fn no_mapping(address: u64) -> Failure {
    refused(&format!("this process has no mapping at {address:#x}"))
}
