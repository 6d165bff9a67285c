"""What audio files hold by their own bytes, whatever their headers and libsndfile say."""
