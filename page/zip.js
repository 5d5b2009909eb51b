// A zip of files that are compressed already, stored as they are (APPNOTE.TXT 6.3.10, 4.3).

const CHECKS = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

function crc32(bytes) {
  let check = ~0;
  for (const byte of bytes) check = CHECKS[(check ^ byte) & 255] ^ (check >>> 8);
  return ~check >>> 0;
}

function pack(...fields) {
  // [size in bytes, number], ... -> the numbers one after another, little endian
  const bytes = fields.flatMap(([size, number]) => Array.from({ length: size }, (_, k) => (number >>> (8 * k)) & 255));
  return Uint8Array.from(bytes);
}

async function zip(files) {
  // [{ name, blob }] -> a Blob
  const bodies = [], entries = [];
  let offset = 0;
  for (const { name, blob } of files) {
    const letters = new TextEncoder().encode(name);
    const check = crc32(new Uint8Array(await blob.arrayBuffer()));
    // version 2.0, name in UTF-8, stored, midnight of 1 January 1980, check, two sizes, name, no more
    const about = pack([2, 20], [2, 0x800], [2, 0], [2, 0], [2, 33], [4, check], [4, blob.size], [4, blob.size], [2, letters.length], [2, 0]);
    const body = [pack([4, 0x04034b50]), about, letters, blob];
    entries.push(pack([4, 0x02014b50], [2, 20]), about, pack([2, 0], [2, 0], [2, 0], [4, 0], [4, offset]), letters);
    bodies.push(...body);
    offset += new Blob(body).size;
  }
  const size = new Blob(entries).size;
  const end = pack([4, 0x06054b50], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, size], [4, offset], [2, 0]);
  return new Blob([...bodies, ...entries, end], { type: "application/zip" });
}
