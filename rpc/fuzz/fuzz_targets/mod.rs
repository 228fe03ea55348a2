//! The fuzz targets of the wire as tests: each is called with its first inputs.
#![allow(clippy::unwrap_used, clippy::panic)] // a panic is how a target tells what it found

use libfuzzer_sys::Seeds;

mod certificates;
mod frames;
mod messages;
mod tokens;

const SEEDS: Seeds = Seeds {
    words: &[
        // Fields of messages: numbers, texts, messages in messages, and lists of numbers.
        "\x08\x01",
        "\x10\x7f",
        "\x18\0",
        "\n\x03abc",
        "\x12\0",
        "\x12\x02\x08\x05",
        "\x1a\x04\n\x02ab",
        "\"\x03\x01\x02\x03",
        "\r\0\0\0\0",
        // Frames: kind, task, length, and what they carry.
        "\x01\0\0\0\0\0\0\0\0",
        "\x02\0\0\0\0\x03\0\0\0abc",
        "\x03\x01\0\0\0\x01\0\0\0x",
        "\x05\x01\0\0\0\x04\0\0\0null",
        "{\"job\":1,\"attempt\":1,\"step\":0}",
        // Tokens, with and without what the target puts before them.
        "berth1.a1_b-2.paWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaU.PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw",
        "\0berth1.a1_b-2.paWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaU.PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw",
        "\x01a1_b-2.paWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaU.PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw",
        // The beginning of a certificate.
        "0\x7f0\x05\x02\x01\x02",
    ],
    slow: &[],
};
