#pragma once

#include <cstdint>

namespace rwkvx::zip {

/// Numbers of PKWARE's APPNOTE.TXT.
inline constexpr uint32_t kLocalHeader = 0x04034b50;
inline constexpr uint32_t kCentralHeader = 0x02014b50;
inline constexpr uint32_t kEndOfDirectory = 0x06054b50;
inline constexpr uint32_t kEndOfDirectory64 = 0x06064b50;
inline constexpr uint32_t kEndLocator64 = 0x07064b50;

inline constexpr uint64_t kLocalHeaderBytes = 30;
inline constexpr uint64_t kCentralHeaderBytes = 46;
inline constexpr uint64_t kEndOfDirectoryBytes = 22;
inline constexpr uint64_t kEndOfDirectory64Bytes = 56;
inline constexpr uint64_t kEndLocator64Bytes = 20;

inline constexpr uint16_t kExtra64 =
    0x0001;  ///< extra field with the sizes and offset that do not fit 32 bits
inline constexpr uint16_t kFlagEncrypted = 1u << 0;
inline constexpr uint16_t kFlagSizesFollow = 1u << 3;  ///< the local header has no sizes
inline constexpr uint16_t kFlagStrongEncryption = 1u << 6;
inline constexpr uint16_t kFlagUtf8 = 1u << 11;
inline constexpr uint16_t kFlagMasked = 1u << 13;
inline constexpr uint16_t kStored = 0;

inline constexpr uint32_t kIn64 = 0xffffffff;  ///< a 32-bit field whose value is in the zip64 part
inline constexpr uint16_t kIn64Short = 0xffff;

}  // namespace rwkvx::zip
