// Shared by all kernels of the cache. The byte layout is that of src/kernels/layout.ts; constants in capitals that are not declared here
// (HEAD_DIM, HEADS, KV_HEADS, GROUP, LANES, DROP, the tables of tiers and levels) are written in front of this file from there.
// PLAIN: records hold plain tiers alone, whose vectors are not rotated; PLAIN_GROUPS scales of 16 bits a cell and half.
//
// A lane owns the 8 channels 8 * sub .. 8 * sub + 7 of a head, `sub` counting the LANES lanes that share one block of 4 tokens.

const SEGMENT_TOKENS = 128u;
const CHUNKS = HEAD_DIM / 4u;
/// Stands for minus infinity, which WGSL cannot write.
const NEVER = -3.0e38;

/// One conversation's attention in one layer.
struct Item {
  out: u32,          // f32 index of row 0's output, [rows, HEADS, HEAD_DIM] contiguous
  exact: u32,        // the exact part's start in `cache`, in units of 16 bytes
  capacity: u32,     // its slots
  visible: u32,      // slots that row 0 sees; row r sees r more
  exactBits: u32,    // 16 or 32
  firstSplit: u32,   // its splits among all, [firstSplit, firstSplit + splits)
  splits: u32,
  position: u32,     // absolute position of row 0
}

/// A share of one conversation's cells: some of its segments, or a piece of at most SEGMENT_TOKENS slots of its exact part. Where gaps were closed behind
/// the sinks, the piece that holds the last of them is read twice, each time with its own queries and as if the other slots were not there.
struct Split {
  item: u32,
  first: u32,        // index into `segments`, or the first slot
  count: u32,        // segments; 0: a piece of the exact part
  scores: u32,       // index of its first cell among all cells of the dispatch, MAX_CELLS for each segment and piece
  q: u32,            // f32 index of row 0's queries, [rows, HEADS, HEAD_DIM] contiguous, rotated for these cells
  from_: u32,        // of a piece only its slots from here
  to: u32,           // to here are there, counted from `first`; 0 and SEGMENT_TOKENS: all
}

struct Params {
  rows: u32,
  scoreStride: u32,  // cells between two queries' scores; 0: scores are not kept
  scale: f32,
  massUnit: f32,     // units of attention mass that a probability of 1 adds; negative: stands for, and the largest is kept
}

/// Bits of a half: tiers hold 1, 2, 3, 4, 8, 16, 32.
fn kBitsOf(tier: u32) -> u32 { return tierBits(K_BITS_LOW, K_BITS_HIGH, tier); }
fn vBitsOf(tier: u32) -> u32 { return tierBits(V_BITS_LOW, V_BITS_HIGH, tier); }
fn tierBits(low: u32, high: u32, tier: u32) -> u32 {
  let nibble = (select(low, high, tier >= 8u) >> ((tier & 7u) * 4u)) & 15u;
  return select(nibble, 1u << (nibble - 5u), nibble > 8u);
}

/// Bytes / 16 of 4 tokens' keys or values.
fn blockVectors(bits: u32) -> u32 {
  switch bits {
    case 32u: { return HEAD_DIM; }
    case 16u: { return HEAD_DIM / 2u; }
    case 8u: { return CHUNKS; }
    case 4u: { return (CHUNKS + 1u) / 2u; }
    case 3u: { return (CHUNKS + 3u) / 4u + (CHUNKS + 7u) / 8u; }
    case 2u: { return (CHUNKS + 3u) / 4u; }
    default: { return (CHUNKS + 7u) / 8u; }
  }
}

/// Bytes of a cell's scale: a code, f16, none; of plain tiers f16 for each 32 channels.
fn scaleBytes(bits: u32) -> u32 {
  if (PLAIN) { return select(0u, 2u * PLAIN_GROUPS, bits <= 8u); }
  return select(select(0u, 2u, bits == 8u), 1u, bits < 8u);
}
fn pad4(n: u32) -> u32 { return (n + 3u) & 0xfffffffcu; }

/// Where a record's parts lie: bytes from its start, codes in units of 16 bytes. `map` 0: all tokens share a tier. PLAIN: there is no mean.
struct Parts { mean: u32, map: u32, scales: u32, codes: u32 }
/// present: bit mask of tiers; counts: their tokens, a byte each.
fn partsOf(present: u32, counts: vec3<u32>, tokens: u32) -> Parts {
  let kinds = countOneBits(present);
  var p: Parts;
  p.mean = pad4(8u + kinds);
  p.map = p.mean + select(HEAD_DIM, 0u, PLAIN);
  p.scales = p.map + select(0u, pad4((tokens + 1u) / 2u), kinds > 1u || (counts.x & 255u) < tokens);
  if (p.scales == p.map) { p.map = 0u; }
  var scaled = 0u;
  var left = present;
  for (var i = 0u; i < kinds; i++) {
    let tier = firstTrailingBit(left);
    left &= left - 1u;
    scaled += pad4(countOf(counts, i)) * (scaleBytes(kBitsOf(tier)) + scaleBytes(vBitsOf(tier)));
  }
  p.codes = (p.scales + scaled + 15u) / 16u;
  return p;
}
/// Tokens of the i-th present tier.
fn countOf(counts: vec3<u32>, i: u32) -> u32 { return (counts[i >> 2u] >> ((i & 3u) * 8u)) & 255u; }

/// One tier's cells in a record: places of scales in bytes, of codes in units of 16 bytes.
struct Group {
  n: u32,            // tokens; padded to blocks of 4
  kBits: u32,
  vBits: u32,
  kScale: u32,
  vScale: u32,
  k: u32,
  v: u32,
  scaleEnd: u32,     // where the next group's scales and codes begin
  codeEnd: u32,
}

fn groupAt(tier: u32, n: u32, scales: u32, codes: u32) -> Group {
  let blocks = (n + 3u) / 4u;
  var g: Group;
  g.n = n;
  g.kBits = kBitsOf(tier);
  g.vBits = vBitsOf(tier);
  g.kScale = scales;
  g.vScale = scales + blocks * 4u * scaleBytes(g.kBits);
  g.scaleEnd = g.vScale + blocks * 4u * scaleBytes(g.vBits);
  g.k = codes;
  g.v = codes + blocks * blockVectors(g.kBits);
  g.codeEnd = g.v + blocks * blockVectors(g.vBits);
  return g;
}

/// 1 / (the integer that stands for one standard deviation).
fn unitInverse(bits: u32) -> f32 {
  return select(select(select(UNIT_INVERSE_1, UNIT_INVERSE_2, bits == 2u), UNIT_INVERSE_3, bits == 3u), UNIT_INVERSE_4, bits == 4u);
}
/// Scales of codes of 1 to 4 bits.
fn scalesOf(codes: vec4<u32>, bits: u32, base: f32) -> vec4<f32> {
  let x = base * exp2((vec4<f32>(codes) - 255.0) / 32.0) * unitInverse(bits);
  return select(x, vec4(0.0), codes == vec4(0u));
}
fn fourBytes(word: u32) -> vec4<u32> { return (vec4(word) >> vec4(0u, 8u, 16u, 24u)) & vec4(255u); }

/// Keys or values of one kvHead in an exact part, and where the keys of a slot start, in units of 16 bytes (slots come by 128).
fn exactHalf(item: Item) -> u32 { return (item.capacity * HEAD_DIM * item.exactBits + 127u) / 128u; }
fn exactAt(item: Item, kvHead: u32, slot: u32) -> u32 {
  return item.exact + 2u * kvHead * exactHalf(item) + slot * HEAD_DIM * item.exactBits / 128u;
}

/// float32 -> float16 bits, to nearest even; saturates at 65504, as the other backends do. pack2x16float may round either way.
fn toF16(x: f32) -> u32 {
  let bits = bitcast<u32>(x);
  let sign = (bits >> 16u) & 0x8000u;
  let a = min(bits & 0x7fffffffu, 0x477fe000u);
  if (a < 0x38800000u) { return sign | (bitcast<u32>(bitcast<f32>(a) + 0.5) - 0x3f000000u); }
  return sign | ((a - 0x38000000u + 0xfffu + ((a >> 13u) & 1u)) >> 13u);
}
