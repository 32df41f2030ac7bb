//! Images: references, layouts, layers, EROFS. Knows no pod and no VM.
