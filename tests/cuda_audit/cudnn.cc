// cuDNN of a version that LibTorch would prefer for attention on some cards. Everything else of it refuses.
extern "C" {

unsigned long cudnnGetVersion() { return 92000; }

}  // extern "C"
