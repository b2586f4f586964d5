#ifndef DITSERVE_SERVER_GATE_UTF8_H_
#define DITSERVE_SERVER_GATE_UTF8_H_

#include <cstdint>

namespace ditserve {

// Whether text is UTF-8 (RFC 3629, 4), told as its bytes come.
//
// Thread safety: thread-compatible.
class Utf8 {
 public:
  // False where the byte can't be next.
  bool Take(uint8_t byte) {
    if (missing_ > 0) {
      const bool fits = byte >= least_ && byte <= most_;
      --missing_;
      least_ = 0x80;
      most_ = 0xbf;
      return fits;
    }
    if (byte < 0x80) return true;
    missing_ = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
    // Neither longer than it need be, nor a surrogate, nor beyond the last character.
    least_ = byte == 0xe0 ? 0xa0 : byte == 0xf0 ? 0x90 : 0x80;
    most_ = byte == 0xed ? 0x9f : byte == 0xf4 ? 0x8f : 0xbf;
    return byte >= 0xc2 && byte <= 0xf4;
  }

  // No character has begun that has not ended.
  bool is_whole() const { return missing_ == 0; }

 private:
  int missing_ = 0;                     // Bytes of the character.
  uint8_t least_ = 0x80, most_ = 0xbf;  // That the next one may be.
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_GATE_UTF8_H_
