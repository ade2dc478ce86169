"""The tables of cross/CHOICES.md out of what `measure` found; each replaces what stands between
its two markers there, and nothing else of that file is touched."""
import re
import statistics

ARM64, ARMV7 = "aarch64-unknown-linux-musl", "armv7-unknown-linux-musleabihf"
AMD64 = "x86_64-unknown-linux-musl"
LABEL = {
    "ring": "ring", "sha2": "sha2", "sha2-speed": "sha2, opt-level 3", "ring-rlsf": "ring, with rlsf",
    "aws": "aws-lc-rs",
    "rustcrypto": "rustls-rustcrypto", "miniz": "miniz_oxide", "miniz-speed": "miniz_oxide, opt-level 3",
    "zlib-rs": "zlib-rs", "zlib-rs-speed": "zlib-rs, opt-level 3", "zlib": "C zlib",
}


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


class Found:
    def __init__(self, results):
        self.results = results

    def entry(self, target, name):
        return self.results[target].get(name)

    def size(self, target, name):
        entry = self.entry(target, name)
        if not entry:
            return "does not build"
        return f"{(entry['size'] - self.entry(target, 'baseline')['size']) / 1024:.0f}"

    def work(self, target, name, kind, what):
        entry = self.entry(target, name)
        return entry and entry[kind]["work"].get(what)

    def each(self, target, name, kind, what, digits=1, units=None, scale=1):
        found = self.work(target, name, kind, what)
        return f"{found[0] / (units or found[1]) / scale:.{digits}f}" if found else "-"

    def pair(self, target, name, what, **more):
        """With and without crypto extensions; one figure where they are the same."""
        both = [self.each(target, name, kind, what, **more) for kind in ("with", "without")]
        return both[0] if both[0] == both[1] else " / ".join(both)

    def names(self, group, without=()):
        keys = list(dict.fromkeys([*self.results[ARM64], *self.results[ARMV7]]))
        order = list(LABEL)
        names = [key for key in keys if key.startswith(group + "-") and not key.endswith(without)]
        # Figures of a candidate that there was once may still be stored.
        names = [name for name in names if name.split("-", 1)[1] in LABEL]
        return sorted(names, key=lambda name: order.index(name.split("-", 1)[1]))


def sha(found):
    rows = []
    for name in found.names("sha"):
        times = [found.work(t, name, "without", "sha256") for t in (ARM64, ARMV7)]
        rows.append([
            LABEL[name[4:]], found.size(ARM64, name), found.size(ARMV7, name),
            found.pair(ARM64, name, "sha256"), found.pair(ARMV7, name, "sha256"),
            " / ".join(f"{t[2] / 1000:.0f}" if t else "-" for t in times),
        ])
    return table(["SHA-256", "KiB arm64", "KiB armv7", "instructions a byte, arm64", "armv7",
                  "ms in qemu, arm64 / armv7"], rows)


def handshakes(found):
    rows = []
    for name in found.names("tls", ("-measured",)):
        measured = name + "-measured"
        row = [LABEL[name[4:]], found.size(ARM64, name), found.size(ARMV7, name)]
        for target in (ARM64, ARMV7):
            for kind in ("ec", "rsa"):
                row.append(" / ".join(
                    found.each(target, measured, "without", f"handshake-{kind}-{side}", 2, scale=1e6)
                    for side in ("client", "server")))
        rows.append(row)
    return table(["TLS", "KiB arm64", "KiB armv7", "arm64, P-256", "arm64, RSA", "armv7, P-256",
                  "armv7, RSA"], rows)


def bulk(found):
    rows = []
    for name in found.names("tls", ("-measured",)):
        for target, label in ((ARM64, "arm64"), (ARMV7, "armv7")):
            if found.entry(target, name + "-measured"):
                rows.append([LABEL[name[4:]], label] + [
                    found.pair(target, name + "-measured", f"open-{suite}")
                    for suite in ("AES_128_GCM", "AES_256_GCM", "CHACHA20_POLY1305")])
    return table(["", "", "AES-128-GCM", "AES-256-GCM", "ChaCha20-Poly1305"], rows)


def inflate(found):
    size, rows = found.results["inflated"], []
    for name in found.names("inflate"):
        row = [LABEL[name[8:]], found.size(ARM64, name), found.size(ARMV7, name)]
        row += [found.each(t, name, "without", "inflate", units=size) for t in (ARM64, ARMV7)]
        for target in (ARM64, ARMV7):
            entry = found.entry(target, name)
            row.append(f"{entry['without']['work']['inflate'][2] / 1000:.0f}" if entry else "-")
        rows.append(row)
    return table(["inflate", "KiB arm64", "KiB armv7", "instructions a byte, arm64", "armv7",
                  "ms in qemu, arm64", "armv7"], rows)


def allocators(found):
    rows = []
    for name in ("system", "mimalloc", "dlmalloc", "rlsf"):
        small = "alloc-" + name
        row = ["the compiler's own" if name == "system" else name]
        row += ["0" if name == "system" else found.size(t, small) for t in (ARM64, ARMV7)]

        def run(target, verb, of, name=name):
            entry = found.results["agent"].get(target, {}).get(verb, {}).get(name)
            return "-" if entry is None else of(entry) if entry["rss"] else "crashes"

        for verb in ("pull", "inspect"):
            for target in (ARMV7, AMD64):
                row.append(run(target, verb, lambda e: f"{statistics.median(e['rss']) / 1024:.1f}"))
            row.append(run(ARMV7, verb, lambda e: f"{e['count'] / 1e6:.0f}"))
            row.append(run(AMD64, verb, lambda e: f"{statistics.median(e['cpu']) * 1000:.0f}"))
        rows.append(row)
    head = ["allocator", "KiB arm64", "KiB armv7"]
    for verb in ("pull", "inspect"):
        head += [f"{verb}: MiB qemu armv7", "MiB amd64", "M instructions armv7", "CPU ms amd64"]
    return table(head, rows)


def memory(found):
    names = ["memcpy", "memcpy-unaligned", "memmove-down", "memmove-up", "memset", "memcmp"]
    rows = [[label] + [found.each(t, "memory", "without", name, digits=2) for name in names]
            for t, label in ((ARM64, "arm64"), (ARMV7, "armv7"))]
    return table(["instructions a byte", *names], rows)


def write(results, path):
    found = Found(results)
    text = path.read_text()
    for make in (sha, handshakes, bulk, inflate, allocators, memory):
        name = make.__name__
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
        if not pattern.search(text):
            raise SystemExit(f"choices: {path} has no place for the table `{name}`")
        made = make(found)
        text = pattern.sub(lambda match, made=made: f"{match[1]}\n{made}\n\n{match[2]}", text)
    path.write_text(text)
