#include "client/ditctl/picture.h"

#include <algorithm>
#include <array>
#include <cstddef>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "client/ditctl/tensors.h"

namespace ditserve::ditctl {
namespace {

// From each channel of the VAE that Wan 2.1 and Qwen-Image share to red, green and blue in [-1, 1]. ComfyUI's
// approximation (latent_formats.Wan21), as InvokeAI 6.14.2 publishes it under the Apache License 2.0
// (invokeai/app/util/step_callback.py, QWEN_IMAGE_LATENT_RGB_FACTORS and QWEN_IMAGE_LATENT_RGB_BIAS).
constexpr int64_t kChannels = 16, kColours = 3;
constexpr float kFactors[kChannels][kColours] = {
    {-0.1299f, -0.1692f, 0.2932f},  {0.0671f, 0.0406f, 0.0442f},  {0.3568f, 0.2548f, 0.1747f},
    {0.0372f, 0.2344f, 0.1420f},    {0.0313f, 0.0189f, -0.0328f}, {0.0296f, -0.0956f, -0.0665f},
    {-0.3477f, -0.4059f, -0.2925f}, {0.0166f, 0.1902f, 0.1975f},  {-0.0412f, 0.0267f, -0.1364f},
    {-0.1293f, 0.0740f, 0.1636f},   {0.0680f, 0.3019f, 0.1128f},  {0.0032f, 0.0581f, 0.0639f},
    {-0.1251f, 0.0927f, 0.1699f},   {0.0060f, -0.0633f, 0.0005f}, {0.3477f, 0.2275f, 0.2950f},
    {0.1984f, 0.0913f, 0.1861f},
};
constexpr float kBias[kColours] = {-0.1835f, -0.0868f, -0.3360f};

constexpr int64_t kMostPixels = 0x7fffffff;  // A side of a PNG.
constexpr size_t kMostStored = 0xffff;       // Bytes of a deflate block that is not compressed.

// Big-endian.
void Append32(uint32_t value, std::string& to) {
  for (const int shift : {24, 16, 8, 0}) to += static_cast<char>(value >> shift);
}

uint32_t Crc32(absl::string_view bytes) {
  uint32_t crc = 0xffffffff;
  for (const char byte : bytes) {
    crc ^= static_cast<uint8_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1) != 0 ? crc >> 1 ^ 0xedb88320 : crc >> 1;
  }
  return ~crc;
}

uint32_t Adler32(absl::string_view bytes) {
  constexpr uint32_t kModulus = 65521;
  uint32_t a = 1, b = 0;
  for (const char byte : bytes) {
    a = (a + static_cast<uint8_t>(byte)) % kModulus;
    b = (b + a) % kModulus;
  }
  return b << 16 | a;
}

// `type`: four letters.
void AppendChunk(absl::string_view type, absl::string_view data, std::string& png) {
  Append32(static_cast<uint32_t>(data.size()), png);
  const std::string checked = absl::StrCat(type, data);
  png += checked;
  Append32(Crc32(checked), png);
}

// As zlib would hold it, without compressing: previews are small.
std::string Stored(absl::string_view data) {
  std::string zlib = "\x78\x01";
  const uint32_t checksum = Adler32(data);
  do {
    const absl::string_view block = data.substr(0, kMostStored);
    data.remove_prefix(block.size());
    const auto size = static_cast<uint16_t>(block.size());
    zlib += static_cast<char>(data.empty());
    for (const uint16_t each : {size, static_cast<uint16_t>(~size)}) {
      zlib += static_cast<char>(each & 0xff);
      zlib += static_cast<char>(each >> 8);
    }
    absl::StrAppend(&zlib, block);
  } while (!data.empty());
  Append32(checksum, zlib);
  return zlib;
}

}  // namespace

absl::Status Preview(const v1::Tensor& latents, Picture& picture) {
  const auto& shape = latents.shape();
  if (shape.size() != 4 || shape[1] != kChannels || *std::min_element(shape.begin(), shape.end()) < 1 ||
      shape[2] > kMostPixels || shape[3] > kMostPixels / shape[0]) {
    return absl::InvalidArgumentError(absl::StrCat("latents have shape [", absl::StrJoin(shape, ", "),
                                                   "], expected [B, 16, H/8, W/8], of a picture as PNG can be"));
  }
  const int64_t batch = latents.shape(0), height = latents.shape(2), width = latents.shape(3), plane = height * width;
  const std::vector<float> values = Floats(latents);
  picture = {batch * width, height, std::vector<uint8_t>(static_cast<size_t>(batch * plane * kColours))};
  for (int64_t pixel = 0; pixel < batch * plane; ++pixel) {
    const int64_t item = pixel / plane, at = pixel % plane, row = at / width, column = at % width;
    for (int64_t colour = 0; colour < kColours; ++colour) {
      float sum = 0;
      for (int64_t channel = 0; channel < kChannels; ++channel) {
        sum += values[static_cast<size_t>((item * kChannels + channel) * plane + at)] * kFactors[channel][colour];
      }
      sum += kBias[colour];
      // (What is not a number is black.)
      const float shown = sum > -1 ? std::min((sum + 1) / 2, 1.0f) : 0.0f;
      const int64_t to = (row * picture.width + item * width + column) * kColours + colour;
      picture.rgb[static_cast<size_t>(to)] = static_cast<uint8_t>(shown * 255);
    }
  }
  return absl::OkStatus();
}

std::string EncodePng(const Picture& picture, const std::string& comment) {
  std::string png("\x89PNG\r\n\x1a\n", 8), header;
  Append32(static_cast<uint32_t>(picture.width), header);
  Append32(static_cast<uint32_t>(picture.height), header);
  header += std::string("\x08\x02\x00\x00\x00", 5);  // 8 bits a colour, RGB; nothing else there is a choice of.
  AppendChunk("IHDR", header, png);
  AppendChunk("tEXt", absl::StrCat("Comment", absl::string_view("\0", 1), comment), png);
  const auto row_bytes = static_cast<size_t>(picture.width * kColours);
  std::string rows;
  for (size_t begin = 0; begin < picture.rgb.size(); begin += row_bytes) {
    rows += '\0';  // No filter.
    rows.append(reinterpret_cast<const char*>(picture.rgb.data()) + begin, row_bytes);
  }
  AppendChunk("IDAT", Stored(rows), png);
  AppendChunk("IEND", "", png);
  return png;
}

}  // namespace ditserve::ditctl
