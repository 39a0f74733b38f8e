// Shared by all kernels of the cache. The byte layout is that of src/kernels/layout.ts; constants in capitals that are not declared here
// (HEAD_DIM, HEADS, KV_HEADS, GROUP, LANES, DROP, the tables of tiers and levels) are written in front of this file from there.
//
// A lane owns the 8 channels 8 * sub .. 8 * sub + 7 of a head, `sub` counting the LANES lanes that share one block of 4 tokens.

const SEGMENT_TOKENS = 128u;
const CHUNKS = HEAD_DIM / 4u;
/// Stands for minus infinity, which WGSL cannot write.
const NEVER = -3.0e38;

/// One conversation's attention in one layer.
struct Item {
  q: u32,            // f32 index of row 0's queries, [rows, HEADS, HEAD_DIM] contiguous
  out: u32,          // f32 index of row 0's output, the same shape
  exact: u32,        // the exact part's start in `cache`, in units of 16 bytes
  capacity: u32,     // its slots
  visible: u32,      // slots that row 0 sees; row r sees r more
  exactBits: u32,    // 16 or 32
  firstSplit: u32,   // its splits among all, [firstSplit, firstSplit + splits)
  splits: u32,
}

/// A share of one conversation's cells: some of its segments, or a piece of its exact part.
struct Split {
  item: u32,
  first: u32,        // index into `segments`, or the first slot
  count: u32,        // segments; 0: a piece of at most SEGMENT_TOKENS slots
  scores: u32,       // index of its first cell among all cells of the dispatch, MAX_CELLS for each segment
}

struct Params {
  rows: u32,
  scoreStride: u32,  // cells between two queries' scores; 0: scores are not kept
  scale: f32,
  pad: u32,
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

/// One tier's cells in a record; places in units of 16 bytes.
struct Group {
  n: u32,            // tokens; padded to blocks of 4
  kBits: u32,
  vBits: u32,
  kScale: u32,
  vScale: u32,
  k: u32,
  v: u32,
  end: u32,
}

fn groupAt(tier: u32, n: u32, at: u32) -> Group {
  let blocks = (n + 3u) / 4u;
  let scales = (blocks + 1u) / 2u;
  var g: Group;
  g.n = n;
  g.kBits = kBitsOf(tier);
  g.vBits = vBitsOf(tier);
  g.kScale = at;
  g.vScale = g.kScale + select(0u, scales, g.kBits <= 8u);
  g.k = g.vScale + select(0u, scales, g.vBits <= 8u);
  g.v = g.k + blocks * blockVectors(g.kBits);
  g.end = g.v + blocks * blockVectors(g.vBits);
  return g;
}

/// A record's mean and first group, in units of 16 bytes from its start.
fn meanAt(tokens: u32) -> u32 { return 1u + (tokens + 31u) / 32u; }
fn groupsAt(tokens: u32) -> u32 { return meanAt(tokens) + (HEAD_DIM + 7u) / 8u; }
fn countOf(counts: vec4<u32>, tier: u32) -> u32 { return (counts[tier >> 2u] >> ((tier & 3u) * 8u)) & 255u; }

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
