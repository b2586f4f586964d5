// The kernels of MatmulKernels, for a file that includes models/matmul_vectors.h and defines what the instruction sets
// differ in before: kTileRows, kDotRows, kDotColumns, kFewRows, MultiplyAdd, WidenBytes, WidenHalfWords
// and DecodeHalfs.

namespace ditserve {
namespace {

constexpr int kTileColumns = 2 * kLanes;
static_assert(kTileRows <= kLanes && 4 * kLanes * kTileColumns <= kPackSlack);

template <typename Vector>
DITSERVE_INLINE Vector Load(const void* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

DITSERVE_INLINE void Store(float* to, Floats vector) { std::memcpy(to, &vector, sizeof vector); }

DITSERVE_INLINE Floats Splat(float value) { return value - Floats{}; }  // Minus zero keeps the sign of zero.

constexpr int64_t Smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Weight dtypes. Decode converts kLanes neighbouring elements; Pick converts element `index` of those that lie in each
// 32-bit word.
struct Float32 {
  static constexpr int kSize = 4;
  DITSERVE_INLINE static Floats Decode(const std::byte* from) { return Load<Floats>(from); }
  DITSERVE_INLINE static Floats Pick(Words words, int) { return Floats(words); }
};

struct BFloat16 {
  static constexpr int kSize = 2;
  DITSERVE_INLINE static Floats Decode(const std::byte* from) { return Floats(WidenHalfWords(from) << 16); }
  DITSERVE_INLINE static Floats Pick(Words words, int index) {
    return Floats(index == 0 ? words << 16 : words & 0xffff0000u);
  }
};

struct Float16 {
  static constexpr int kSize = 2;
  DITSERVE_INLINE static Floats Decode(const std::byte* from) { return DecodeHalfs(WidenHalfWords(from)); }
  DITSERVE_INLINE static Floats Pick(Words words, int index) { return DecodeHalfs(words >> (16 * index)); }
};

struct Float8E4M3 {
  static constexpr int kSize = 1;
  DITSERVE_INLINE static Floats Decode(const std::byte* from) { return Pick(WidenBytes(from), 0); }
  DITSERVE_INLINE static Floats Pick(Words words, int index) {
    const Words top = words << (24 - 8 * index);
    const Words magnitude = (top >> 4) & 0x07f00000u;
    // Its exponent is 120 too small, denormals of float32 among them. There is no infinity, and one NaN.
    const Words finite = Words(Floats(magnitude) * 0x1p120f);
    return Floats((top & 0x80000000u) | (magnitude == 0x07f00000u ? 0x7ff00000u + Words{} : finite));
  }
};

// A vector of which `bytes` are there; what is behind them is 0 and not read.
template <typename Vector>
DITSERVE_INLINE Vector LoadSome(const void* from, int64_t bytes) {
  Vector vector = {};
  std::memcpy(&vector, from, static_cast<size_t>(bytes));
  return vector;
}

// kLanes elements, of which `count` are there.
template <typename Element>
DITSERVE_INLINE Floats DecodeSome(const std::byte* from, int64_t count) {
  std::byte padded[kLanes * Element::kSize] = {};
  std::memcpy(padded, from, static_cast<size_t>(count * Element::kSize));
  return Element::Decode(padded);
}

template <int... kIndices>
struct Indices {};
template <int kCount, int... kIndices>
struct MakeIndices : MakeIndices<kCount - 1, kCount - 1, kIndices...> {};
template <int... kIndices>
struct MakeIndices<0, kIndices...> {
  using Type = Indices<kIndices...>;
};

// Exchanges the elements of `a` whose index has kBit with those of `b` whose index has not.
template <int kBit, int... kIndex>
DITSERVE_INLINE void Exchange(Words& a, Words& b, Indices<kIndex...>) {
  const Words first = __builtin_shufflevector(a, b, ((kIndex & kBit) != 0 ? kLanes + kIndex - kBit : kIndex)...);
  b = __builtin_shufflevector(a, b, ((kIndex & kBit) != 0 ? kLanes + kIndex : kIndex + kBit)...);
  a = first;
}

// Transposes kLanes x kLanes words, in as many rounds as an index has bits.
template <int kBit = 1>
DITSERVE_INLINE void Transpose(Words (&rows)[kLanes]) {
  if constexpr (kBit < kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if ((i & kBit) == 0) Exchange<kBit>(rows[i], rows[i + kBit], typename MakeIndices<kLanes>::Type());
    }
    Transpose<2 * kBit>(rows);
  }
}

// Converts [kLanes, depth] at `rows` to one line of kLanes floats for each of `depth`, kWidth apart. Whole words are
// transposed, with as many elements as are in them: a cache line of each row is read at once, and only once. Lines are
// written up to the next multiple of kLanes words.
template <typename Element, int kWidth>
DITSERVE_INLINE void PackLanes(const std::byte* const (&rows)[kLanes], int64_t depth, float* packed) {
  constexpr int kInWord = 4 / Element::kSize;
  constexpr int64_t kStep = kLanes * kInWord;
  for (int64_t k = 0; k < depth; k += kStep) {
    const int64_t bytes = Smaller(kStep, depth - k) * Element::kSize;
    Words block[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      const std::byte* const from = rows[i] + k * Element::kSize;
      block[i] = bytes == sizeof(Words) ? Load<Words>(from) : LoadSome<Words>(from, bytes);
    }
    Transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kInWord; ++j) Store(packed + (k + i * kInWord + j) * kWidth, Element::Pick(block[i], j));
    }
  }
}

template <typename Element>
DITSERVE_KERNEL void PackWeights(const std::byte* weight, int64_t stride, int64_t columns, int64_t depth,
                                 float* panel) {
  for (int half = 0; half < 2; ++half) {
    const std::byte* rows[kLanes];  // Where columns are missing, the last is repeated.
    for (int i = 0; i < kLanes; ++i) {
      rows[i] = weight + Smaller(half * kLanes + i, columns - 1) * stride * Element::kSize;
    }
    PackLanes<Element, kTileColumns>(rows, depth, panel + half * kLanes);
  }
}

DITSERVE_KERNEL void PackRows(const float* x, int64_t stride, int64_t rows, int64_t depth, float* packed) {
  const std::byte* from[kLanes];
  for (int i = 0; i < kLanes; ++i) from[i] = reinterpret_cast<const std::byte*>(x + Smaller(i, rows - 1) * stride);
  PackLanes<Float32, kTileRows>(from, depth, packed);  // Each line overwrites what the one before has too many.
}

// One tile of y stays in registers while `depth` outer products are added up.
template <int kRows>
DITSERVE_KERNEL void MultiplyRows(const float* packed_rows, const float* panel, int64_t depth, const float* start,
                                  float* y, int64_t y_stride) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {  // y comes from memory meanwhile.
    __builtin_prefetch(y + r * y_stride, 1);
    __builtin_prefetch(y + r * y_stride + kTileColumns - 1, 1);
  }
  Floats sums[kRows][2] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const Floats left = Load<Floats>(panel), right = Load<Floats>(panel + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Floats x = Splat(packed_rows[r]);
      sums[r][0] = MultiplyAdd(x, left, sums[r][0]);
      sums[r][1] = MultiplyAdd(x, right, sums[r][1]);
    }
    packed_rows += kTileRows;
    panel += kTileColumns;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    float* const to = y + r * y_stride;
    const float* const from = start != nullptr ? start : to;
    Store(to, Load<Floats>(from) + sums[r][0]);
    Store(to + kLanes, Load<Floats>(from + kLanes) + sums[r][1]);
  }
}

template <int kRows = kTileRows>
void MultiplyTile(const float* packed_rows, const float* panel, int64_t rows, int64_t depth, const float* start,
                  float* y, int64_t y_stride) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return MultiplyTile<kRows - 1>(packed_rows, panel, rows, depth, start, y, y_stride);
  }
  MultiplyRows<kRows>(packed_rows, panel, depth, start, y, y_stride);
}

// Neighbours first, then pairs, and so on.
DITSERVE_INLINE float Sum(Floats vector) {
  float lanes[kLanes];
  Store(lanes, vector);
#pragma GCC unroll 4
  for (int width = kLanes / 2; width > 0; width /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < width; ++i) lanes[i] = lanes[2 * i] + lanes[2 * i + 1];
  }
  return lanes[0];
}

// Adds kLanes products of each row with each column to `sums`, or as many as `count` says.
template <typename Element, bool kAll, int kRows, int kColumns>
DITSERVE_INLINE void AddProducts(const float* x, int64_t x_stride, const std::byte* weight, int64_t stride,
                                 int64_t count, Floats (&sums)[kRows][kColumns]) {
  Floats columns[kColumns];
#pragma GCC unroll 8
  for (int c = 0; c < kColumns; ++c) {
    const std::byte* const from = weight + c * stride * Element::kSize;
    columns[c] = kAll ? Element::Decode(from) : DecodeSome<Element>(from, count);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const float* const from = x + r * x_stride;
    const Floats row = kAll ? Load<Floats>(from) : LoadSome<Floats>(from, count * 4);
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) sums[r][c] = MultiplyAdd(row, columns[c], sums[r][c]);
  }
}

// y[r, c] += x[r] . weight[c], in kLanes sums that are added up at the end.
template <typename Element, int kRows, int kColumns>
DITSERVE_KERNEL void AddDots(const float* x, int64_t x_stride, const std::byte* weight, int64_t stride, int64_t depth,
                             float* y, int64_t y_stride) {
  Floats sums[kRows][kColumns] = {};
  int64_t k = 0;
  for (; k + kLanes <= depth; k += kLanes) {
    AddProducts<Element, true>(x + k, x_stride, weight + k * Element::kSize, stride, kLanes, sums);
  }
  if (k < depth) AddProducts<Element, false>(x + k, x_stride, weight + k * Element::kSize, stride, depth - k, sums);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) y[r * y_stride + c] += Sum(sums[r][c]);
  }
}

// The same for `rows` rows, kRows or fewer at a time.
template <typename Element, int kColumns, int kRows = kDotRows>
void AddRowsOfDots(const float* x, int64_t x_stride, int64_t rows, const std::byte* weight, int64_t stride,
                   int64_t depth, float* y, int64_t y_stride) {
  for (; rows >= kRows; rows -= kRows) {
    AddDots<Element, kRows, kColumns>(x, x_stride, weight, stride, depth, y, y_stride);
    x += kRows * x_stride;
    y += kRows * y_stride;
  }
  if constexpr (kRows > 1) {
    AddRowsOfDots<Element, kColumns, kRows - 1>(x, x_stride, rows, weight, stride, depth, y, y_stride);
  }
}

template <typename Element>
DITSERVE_KERNEL void Decode(const std::byte* source, int64_t count, float* target) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Store(target + i, Element::Decode(source + i * Element::kSize));
  if (i == count) return;
  const Floats last = DecodeSome<Element>(source + i * Element::kSize, count - i);
  std::memcpy(target + i, &last, static_cast<size_t>(count - i) * sizeof(float));
}

template <typename Element>
void MultiplyFew(const float* x, int64_t x_stride, int64_t rows, const std::byte* weight, const std::byte* bias,
                 int64_t columns, int64_t depth, float* y, int64_t y_stride) {
  for (int64_t r = 0; r < rows; ++r) {
    float* const to = y + r * y_stride;
    if (bias != nullptr) {
      Decode<Element>(bias, columns, to);
    } else {
      std::memset(to, 0, static_cast<size_t>(columns) * sizeof(float));
    }
  }
  constexpr int64_t kBlock = 4096;  // As much of x as stays in the second-level cache.
  for (int64_t k = 0; k < depth; k += kBlock) {
    const int64_t length = Smaller(kBlock, depth - k);
    int64_t c = 0;
    for (; c + kDotColumns <= columns; c += kDotColumns) {
      const std::byte* const from = weight + (c * depth + k) * Element::kSize;
      AddRowsOfDots<Element, kDotColumns>(x + k, x_stride, rows, from, depth, length, y + c, y_stride);
    }
    for (; c < columns; ++c) {
      const std::byte* const from = weight + (c * depth + k) * Element::kSize;
      AddRowsOfDots<Element, 1>(x + k, x_stride, rows, from, depth, length, y + c, y_stride);
    }
  }
}

template <typename Element>
constexpr MatmulKernels kKernels = {
    kTileRows,      kTileColumns,         kFewRows,       PackWeights<Element>, PackRows,
    MultiplyTile<>, MultiplyFew<Element>, Decode<Element>};

const MatmulKernels& KernelsFor(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return kKernels<BFloat16>;
    case DType::kFloat16:
      return kKernels<Float16>;
    case DType::kFloat8E4M3:
      return kKernels<Float8E4M3>;
    default:
      return kKernels<Float32>;
  }
}

}  // namespace
}  // namespace ditserve
