// From an image file to pixels: with stb_image where CMake finds it, else binary PPM alone.
//
// As in Python, what is transparent lies on white, and grey becomes three channels. A JPEG's EXIF
// orientation is not followed, and its pixels may be one step away from pillow's.
#pragma once

#include "tcompile_runtime.hpp"

#if defined(TCOMPILE_WITH_STB)
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#include <stb_image.h>
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif
#endif

/// Read an image. Throws tcompile::Error where it cannot be read.
inline tcompile::Image read_image(std::string const& path) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) throw tcompile::Error("no such file", path);
#if defined(TCOMPILE_WITH_STB)
  int width = 0, height = 0, channels = 0;
  std::unique_ptr<unsigned char, void (*)(void*)> const read(
      stbi_load(path.c_str(), &width, &height, &channels, 4), stbi_image_free);
  if (!read)
    throw tcompile::Error(std::string("is not an image that stb_image can read: ") +
                              stbi_failure_reason(), path);
  tcompile::Image image(width, height);
  for (std::size_t i = 0; i < image.pixels.size(); ++i) {
    int const colour = read.get()[i / 3 * 4 + i % 3], alpha = read.get()[i / 3 * 4 + 3];
    image.pixels[i] = static_cast<std::uint8_t>((colour * alpha + 255 * (255 - alpha) + 127) / 255);
  }
  return image;
#else
  std::ifstream stream(path, std::ios::binary);
  std::string kind;
  int width = 0, height = 0, most = 0;
  stream >> kind >> width >> height >> most;
  stream.get();
  if (kind != "P6" || most != 255 || width < 1 || height < 1 || width > 1 << 15 || height > 1 << 15)
    throw tcompile::Error("is not a binary PPM of 8 bits", path,
                          "build with stb_image for other files: apt install libstb-dev");
  tcompile::Image image(width, height);
  stream.read(reinterpret_cast<char*>(image.pixels.data()),
              static_cast<std::streamsize>(image.pixels.size()));
  if (!stream) throw tcompile::Error("is truncated", path);
  return image;
#endif
}
