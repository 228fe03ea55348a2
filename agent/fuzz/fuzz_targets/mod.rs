//! The fuzz target of what tasks say to their node's PMI server as a test: it is called with its first inputs.
#![allow(clippy::unwrap_used, clippy::panic)] // a panic is how a target tells what it found

use libfuzzer_sys::Seeds;

mod pmi;

const SEEDS: Seeds = Seeds {
    words: &[
        "cmd=init pmi_version=1 pmi_subversion=1\n",
        "cmd=init pmi_version=2 pmi_subversion=0\n",
        "cmd=get_maxes\n",
        "cmd=get_appnum\n",
        "cmd=get_my_kvsname\n",
        "cmd=put kvsname=1.0 key=a value=b\\ c\n",
        "cmd=get kvsname=1.0 key=a\n",
        "cmd=get kvsname=1.0 key=PMI_process_mapping\n",
        "cmd=getbyidx kvsname=1.0 idx=0\n",
        "cmd=barrier_in\n",
        "cmd=publish_name service=a port=b\n",
        "cmd=finalize\n",
        "cmd=abort exitcode=1\n",
        "mcmd=spawn\nnprocs=2\nexecname=./a\ntotspawns=1\nspawnssofar=1\nendcmd\n",
        "    51cmd=fullinit;pmijobid=1.0;pmirank=3;threaded=FALSE;",
        "    28cmd=kvs-put;key=a;value=b;;;",
        "    37cmd=kvs-get;jobid=1.0;srcid=-1;key=a;",
        "    14cmd=kvs-fence;",
        "    35cmd=info-putnodeattr;key=a;value=b;",
        "    37cmd=info-getnodeattr;key=a;wait=TRUE;",
        "    37cmd=info-getjobattr;key=universeSize;",
        "    13cmd=finalize;",
        // Keys of other nodes: lengths of key and value, and both.
        "\x01\0\x01\0ab",
        "\x01\0\0\0a",
        "1\0",
    ],
    slow: &[],
};
